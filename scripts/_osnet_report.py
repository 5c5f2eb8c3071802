"""The page that osnet_eval writes: one file, nothing fetched from elsewhere."""

import base64
import html
from collections.abc import Sequence
from typing import Any

import _osnet_charts
import _osnet_evaluation
import _osnet_model
import jax
import jax.numpy as jnp
import numpy as np

from jaxpapers.osnet import augment, features, visualize

_STYLE = """
:root { color-scheme: light dark; --ink: #1a1d21; --dim: #5c6570;
  --page: #f6f7f9; --card: #fff; --line: #dfe3e8; --right: #1a9850;
  --wrong: #d73027; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --dim: #9aa4b0;
  --page: #14171a; --card: #1d2125; --line: #343a41; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 20px 80px; max-width: 1080px;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 21px; margin: 48px 0 12px; }
h3 { font-size: 16px; margin: 28px 0 8px; }
.dim, figcaption { color: var(--dim); } .small { font-size: 13px; }
nav a { margin-right: 14px; } a { color: #0072b2; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 12px 0; }
.cards div { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 12px 18px; min-width: 110px; }
.cards b { display: block; font-size: 26px; font-weight: 600;
  font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; background: var(--card); margin: 8px 0;
  font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px; border: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
.scroll { overflow-x: auto; }
.charts { display: grid; gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); }
.charts > div { background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 10px 12px; } .charts h3 { margin: 0 0 4px; }
svg { width: 100%; height: auto; } .grid { stroke: var(--line); }
.mark { stroke: var(--dim); stroke-dasharray: 4 3; }
.tick, .label { fill: var(--dim); font-size: 11px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px;
  margin: 0; padding: 0 0 0 8px; font-size: 13px; }
.legend span { display: inline-block; width: 14px; height: 4px;
  margin: 0 6px 3px 0; }
.list { display: flex; gap: 6px; overflow-x: auto; padding: 8px;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  margin: 6px 0; }
figure { margin: 0; flex: none; text-align: center; font-size: 11px;
  width: min-content; min-width: 78px; line-height: 1.3; }
figure img { display: block; margin: 0 auto 2px; height: 128px;
  border: 4px solid var(--dim); border-radius: 3px; image-rendering: auto; }
figure.right img { border-color: var(--right); }
figure.wrong img { border-color: var(--wrong); border-style: dashed; }
.list .first { margin-right: 18px; }
"""


def page(
  model: _osnet_model.Model,
  results: Sequence[_osnet_evaluation.Result],
  about: Sequence[tuple[str, str]],
  *,
  examples: int = 8,
  top: int = 10,
  seed: int = 0,
) -> str:
  """Writes the page.

  Args:
    model: The network.
    results: One of each data set.
    about: Names and texts of what was run.
    examples: Ranked lists of each kind.
    top: Images in a list.
    seed: Of the choice of examples.

  Returns:
    HTML.
  """
  title = f'{model.name} on {", ".join(r.name for r in results)}'
  links = ''
  if len(results) > 1:
    links = ''.join(f'<a href="#{_id(r)}">{_text(r.name)}</a>' for r in results)
    links = f'<nav>{links}</nav>'
  facts = ' · '.join(f'{_text(k)}: {_text(v)}' for k, v in about if v)
  head = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<title>{_text(title)}</title><style>{_STYLE}</style></head><body>'
    f'<h1>{_text(title)}</h1><p class="dim small">{facts}</p>{links}'
  )
  explain = jax.jit(
    lambda v, x: visualize.activation_map(
      model.output(v, augment.normalize(x)).feature_map, model.hw
    )
  )
  sections = [
    _section(model, result, explain, examples, top, seed) for result in results
  ]
  return head + ''.join(sections) + '</body></html>\n'


def _section(model, result, explain, examples, top, seed):
  best = list(result.ranks)[-1]
  one = result.ranks[best]
  cards = [
    ('Rank 1', f'{100 * one.cmc[0]:.1f} %'),
    ('mAP', f'{100 * one.mAP:.1f} %'),
    ('mINP', f'{100 * one.mINP:.1f} %'),
    ('queries', f'{one.num_valid:,}'),
    ('gallery', f'{len(result.gallery.pids):,}'),
  ]
  if result.roc is not None:
    cards.insert(3, ('equal error rate', f'{100 * result.roc.eer:.1f} %'))
  boxes = ''.join(
    f'<div><b>{value}</b><span class="dim">{name}</span></div>'
    for name, value in cards
  )
  parts = [
    f'<h2 id="{_id(result)}">{_text(result.name)}</h2>',
    f'<div class="cards">{boxes}</div>',
    f'<p class="dim small">Ranked by: {_text(best)}. Protocol'
    f' {result.protocol}.</p>'
    if len(result.ranks) > 1
    else '',
    _table(
      [
        {
          'ranked by': name,
          **{
            k: v if k == 'queries' else f'{100 * v:.2f}'
            for k, v in _osnet_evaluation.row(rank).items()
          },
        }
        for name, rank in result.ranks.items()
      ]
    ),
    f'<div class="charts">{_charts(result)}</div>',
    _operating_points(result),
    _counts(result),
    _lists(model, result, explain, examples, top, seed),
  ]
  return ''.join(parts)


def _charts(result):
  curves = {
    name: (np.arange(1, len(one.cmc) + 1), 100 * one.cmc)
    for name, one in result.ranks.items()
  }
  length = len(next(iter(curves.values()))[0])
  low = min(float(y.min()) for _, y in curves.values())
  low = max(0, 10 * np.floor((low - 2) / 10))
  ticks = np.arange(low, 101, 20 if low < 50 else 10)
  kind = (
    'one random image of each identity'
    if (result.protocol == 'cuhk03')
    else 'all images'
  )
  charts = [
    (
      'Cumulative matching characteristic',
      _osnet_charts.line_chart(
        'CMC curve',
        curves,
        x_label=f'rank, in a gallery of {kind}',
        y_label='queries with a match (%)',
        x_range=(1, max(length, 2)),
        y_range=(low, 100),
        x_ticks=[k for k in (1, 5, 10, 20, 30, 40, 50) if k <= length],
        y_ticks=ticks,
      ),
    )
  ]
  if result.roc is not None:
    roc = result.roc
    least = max(1e-4, 10 ** np.floor(np.log10(1 / roc.num_negative)))
    charts.append(
      (
        'Same person or not',
        _osnet_charts.line_chart(
          'ROC curve',
          {f'area {roc.auc:.4f}': (np.maximum(roc.fpr, least), 100 * roc.tpr)},
          x_label='other people accepted (share, logarithmic)',
          y_label='same person accepted (%)',
          x_range=(least, 1),
          y_range=(0, 100),
          x_ticks=[t for t in (1e-4, 1e-3, 1e-2, 1e-1, 1) if t >= least],
          y_ticks=(0, 20, 40, 60, 80, 100),
          log_x=True,
        ),
      )
    )
    edges, same, other = result.histogram
    centre = (edges[1:] + edges[:-1]) / 2
    most = 100 * max(same.max(), other.max()) * 1.05
    step = _nice(edges[-1] / 5)
    charts.append(
      (
        'Distances of pairs',
        _osnet_charts.line_chart(
          'Histogram of distances',
          {
            'same person': (centre, 100 * same),
            'other people': (centre, 100 * other),
          },
          x_label='distance',
          y_label='pairs of the kind (%)',
          x_range=(0, float(edges[-1])),
          y_range=(0, most),
          x_ticks=np.arange(0, edges[-1], step),
          y_ticks=np.arange(0, most, _nice(most / 5)),
          filled=True,
          marks=[(roc.eer_threshold, 'equal errors')],
        ),
      )
    )
  values = result.ranks[_osnet_evaluation.PLAIN].ap
  share, edges = np.histogram(values[~np.isnan(values)], 20, (0, 1))
  share = 100 * share / share.sum()
  most = max(float(share.max()) * 1.05, 1)
  charts.append(
    (
      'Average precision of queries',
      _osnet_charts.line_chart(
        'Histogram of average precision',
        {'features': ((edges[1:] + edges[:-1]) / 2, share)},
        x_label='average precision',
        y_label='queries (%)',
        x_range=(0, 1),
        y_range=(0, most),
        x_ticks=(0, 0.2, 0.4, 0.6, 0.8, 1),
        y_ticks=np.arange(0, most, _nice(most / 5)),
        filled=True,
      ),
    )
  )
  return ''.join(f'<div><h3>{name}</h3>{svg}</div>' for name, svg in charts)


def _nice(step):
  """A round number near this one."""
  power = 10.0 ** np.floor(np.log10(step))
  return power * min((1, 2, 5, 10), key=lambda m: abs(m - step / power))


def _operating_points(result):
  if result.roc is None:
    return ''
  rows = [
    {
      'other people accepted': f'{100 * p["fpr"]:g} %',
      'same person accepted': f'{100 * p["tpr"]:.1f} %',
      'distance at most': f'{p["threshold"]:.4g}' if p['tpr'] else 'none',
    }
    for p in _osnet_evaluation.operating_points(result.roc)
  ]
  rows.append(
    {
      'other people accepted': f'equal errors: {100 * result.roc.eer:.2f} %',
      'same person accepted': f'{100 - 100 * result.roc.eer:.1f} %',
      'distance at most': f'{result.roc.eer_threshold:.4g}',
    }
  )
  some = '' if result.stride == 1 else f', every {result.stride}th query'
  return (
    '<h3>Thresholds: is it the same person?</h3>'
    f'<p class="dim small">{result.roc.num_positive:,} pairs of the same person'
    f' in different cameras, {result.roc.num_negative:,} of different people'
    f'{some}.</p>{_table(rows)}'
  )


def _counts(result):
  names = list(dict.fromkeys(k for c in result.counts.values() for k in c))
  rows = [
    {'': part, **{name: counts.get(name, '') for name in names}}
    for part, counts in result.counts.items()
  ]
  lost = ''.join(f'<li>{_text(m)}</li>' for m in result.unreadable[:50])
  lost = f'<ul class="small">{lost}</ul>' if lost else ''
  return (
    f'<h3>What was evaluated, and what was left out</h3>{_table(rows)}{lost}'
  )


def _lists(model, result, explain, examples, top, seed):
  one = result.ranks[_osnet_evaluation.PLAIN]
  valid = np.flatnonzero(one.valid)
  wrong = valid[one.first_rank[valid] > 1]
  wrong = wrong[np.argsort(one.ap[wrong], kind='stable')][:examples]
  drawn = np.random.default_rng(seed).permutation(valid)[:examples]
  out = []
  for title, note, chosen in (
    ('Some queries', 'Drawn at random.', np.sort(drawn)),
    ('The worst', 'Wrong at rank 1, least average precision first.', wrong),
  ):
    if len(chosen):
      rows = _rows(model, result, explain, chosen, top)
      out.append(
        f'<h3>{title}</h3><p class="dim small">{note} On the left the query and'
        ' where the network looks. Solid green frames: the same person, dashed'
        f' red ones: another.</p>{rows}'
      )
  return ''.join(out)


def _rows(model, result, explain, chosen, top):
  pixels = np.stack(
    [features.load_pixels(result.query.paths[i], model.hw) for i in chosen]
  )
  maps = np.asarray(explain(model.variables, jnp.asarray(pixels)))
  distances = {name: rows(chosen) for name, rows in result.distances.items()}
  out = []
  for n, query in enumerate(chosen):
    for name, rows in distances.items():
      first = name == _osnet_evaluation.PLAIN
      overlay = visualize.overlay(pixels[n], maps[n])
      cells = [
        _figure(pixels[n], _who(result.query, query), '')
        if first
        else _figure(pixels[n], _text(name), ''),
        _figure(
          overlay, f'AP {100 * result.ranks[name].ap[query]:.1f} %', 'first'
        ),
      ]
      cells += _found(model, result, query, rows[n], top)
      out.append(f'<div class="list">{"".join(cells)}</div>')
  return ''.join(out)


def _found(model, result, query, dist, top):
  gallery = result.gallery
  pid = result.query.pids[query]
  hidden = (gallery.pids == pid) & (
    gallery.camids == result.query.camids[query]
  )
  order = np.argsort(dist, kind='stable')
  for rank, i in enumerate(order[~hidden[order]][:top], 1):
    image = features.load_pixels(gallery.paths[i], model.hw)
    kind = 'right' if gallery.pids[i] == pid else 'wrong'
    text = f'{rank}: {dist[i]:.3g}<br>{_who(gallery, i)}'
    yield _figure(image, text, kind)


def _who(side, i):
  return f'id {side.pids[i]}, cam {side.camids[i] + 1}'


def _figure(image: Any, caption: str, kind: str) -> str:
  content = visualize.encode_image(_small(image), 'JPEG', quality=85)
  data = base64.b64encode(content).decode()
  name = caption.replace('<br>', ', ')
  return (
    f'<figure class="{kind}"><img alt="{name}" loading="lazy"'
    f' src="data:image/jpeg;base64,{data}">'
    f'<figcaption>{caption}</figcaption></figure>'
  )


def _small(image):
  """At most 128 pixels high: as it is shown."""
  from jaxpapers.osnet import sources

  height, width = image.shape[:2]
  if height <= 128:
    return image
  return sources.resize(image, 128, max(1, round(128 * width / height)))


def _table(rows):
  names = list(rows[0])
  head = ''.join(f'<th>{_text(name)}</th>' for name in names)
  body = ''.join(
    '<tr>' + ''.join(f'<td>{_number(row[name])}</td>' for name in names)
    for row in rows
  )
  return f'<div class="scroll"><table><tr>{head}{body}</table></div>'


def _number(value):
  return f'{value:,}' if isinstance(value, int) else _text(str(value))


def _id(result):
  return ''.join(c if c.isalnum() else '-' for c in result.name)


def _text(value):
  return html.escape(str(value))
