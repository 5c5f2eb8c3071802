"""Nine research papers as one JAX package.

Each paper is a subpackage of its own and is imported by name, for example
`import jaxpapers.structopt`. Importing `jaxpapers` itself loads nothing else:
not even JAX, so that the command line and tools that only ask for the version
start at once.
"""

# The only place where the version is written; setup.py reads this line.
__version__ = '0.1.0'

__all__ = ['__version__']
