"""Pictures of three-dimensional designs as shaded surfaces.

The surface on which the density is one half, found by marching cubes and drawn
with matplotlib's Agg canvas: no display and no graphics library are needed.
"""

import numpy as np

_COLOUR = (0.36, 0.55, 0.75)
_SUPPORT_COLOUR = (0.80, 0.83, 0.88)
_LOAD_COLOUR = '#c8102e'
# Direction from which light falls, in the axes of the picture (x, z, up).
_LIGHT = (0.35, -0.75, 0.9)


def surface(x, level: float = 0.5):
  """Triangles of the surface between material and void.

  Args:
    x: densities `[nelz, nely, nelx]`.
    level: density on the surface.

  Returns:
    `(vertices, faces, normals)`: vertices `[n, 3]` in element units with the
    components (x, y, z), vertex indices `[m, 3]`, and unit normals `[n, 3]`
    that point out of the material.

  Raises:
    ValueError: if `x` is not a finite 3-D field, or no density lies on the
      other side of `level` than the rest.
    ImportError: if scikit-image is missing.
  """
  x = np.asarray(x, np.float64)
  if x.ndim != 3 or not np.isfinite(x).all():
    raise ValueError(
      f'x has shape {x.shape}; expected finite densities [nelz, nely, nelx].'
    )
  if not x.max() > level:
    raise ValueError(
      f'x has a maximum of {x.max():.3g}; there is no surface at level={level}.'
    )
  try:
    from skimage import measure
  except ImportError as error:
    raise ImportError(
      'Surfaces need scikit-image: pip install jaxpapers[structopt]'
    ) from error
  # Void all around closes the surface where material touches the boundary.
  vertices, faces, normals, _ = measure.marching_cubes(np.pad(x, 1), level)
  vertices = (vertices - 0.5)[:, ::-1]
  return vertices, faces, normals[:, ::-1]


def draw_solid(
  x,
  *,
  mirror_z: bool = False,
  level: float = 0.5,
  elevation: float = 22.0,
  azimuth: float = -58.0,
  title: str = '',
  zoom: float = 1.1,
  width: float = 8.0,
  height: float = 5.0,
):
  """Draws a design as a shaded surface.

  Args:
    x: densities `[nelz, nely, nelx]`; y points downwards.
    mirror_z: whether to continue the design beyond the layer z = 0.
    level: density on the surface.
    elevation: angle of the view above the horizontal plane, in degrees.
    azimuth: angle of the view about the vertical axis, in degrees.
    title: text above the picture.
    zoom: size of the design in the picture.
    width: width of the figure in inches.
    height: height of the figure in inches.

  Returns:
    A `matplotlib.figure.Figure`; see `figures.save_figure`.

  Raises:
    ValueError: see `surface`.
    ImportError: if matplotlib or scikit-image is missing.
  """
  try:
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection
  except ImportError as error:
    raise ImportError(
      'Figures need matplotlib: pip install jaxpapers[structopt]'
    ) from error
  x = np.asarray(x, np.float64)
  if mirror_z and x.ndim == 3:
    x = np.concatenate([x[::-1], x])
  vertices, faces, normals = surface(x, level)
  # Axes of the picture: x to the right, z to the back, up is against y.
  order, flip = [0, 2, 1], np.array([1.0, 1.0, -1.0])
  vertices, normals = vertices[:, order] * flip, normals[:, order] * flip
  light = np.array(_LIGHT) / np.linalg.norm(_LIGHT)
  facing = normals[faces].mean(1) @ light
  shade = 0.42 + 0.58 * np.clip(0.5 + 0.5 * facing, 0, 1) ** 1.3
  highlight = 0.25 * np.clip(facing, 0, 1)[:, None] ** 12
  colours = np.clip(shade[:, None] * np.array(_COLOUR) * 1.25 + highlight, 0, 1)
  nelz, nely, nelx = x.shape
  figure = Figure(figsize=(width, height))
  axes = figure.add_axes((0, 0, 1, 0.95 if title else 1), projection='3d')
  axes.add_collection3d(
    Poly3DCollection(
      vertices[faces],
      facecolors=colours,
      edgecolors=colours,
      linewidths=0.15,
      clip_on=False,
    )
  )
  _wall(axes, nely, nelz, Poly3DCollection)
  axes.set_xlim(0, nelx)
  axes.set_ylim(0, nelz)
  axes.set_zlim(-nely, 0)
  axes.set_box_aspect((nelx, nelz, nely), zoom=zoom)
  axes.view_init(elev=elevation, azim=azimuth)
  axes.set_proj_type('persp', focal_length=0.6)
  axes.set_axis_off()
  if title:
    figure.text(0.5, 0.97, title, ha='center', va='top', fontsize=12)
  return figure


def _wall(axes, nely, nelz, collection) -> None:
  """Draws the plane x = 0 behind the structure."""
  corners = [(0, 0, 0), (0, nelz, 0), (0, nelz, -nely), (0, 0, -nely)]
  wall = collection(
    [np.array(corners, float)],
    facecolors=[(*_SUPPORT_COLOUR, 0.5)],
    edgecolors=[(0.6, 0.65, 0.7, 1.0)],
    linewidths=0.6,
    clip_on=False,
  )
  axes.add_collection3d(wall)
