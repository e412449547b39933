"""Hemstitch: train neural networks, acoustic models first, beyond plain Adam.

Three floors, lower ones never import higher ones:

- base: :mod:`hemstitch.graphs`, :mod:`hemstitch.curvature`, :mod:`hemstitch.sampling`,
  :mod:`hemstitch.comm`, :mod:`hemstitch.models`
- methods: :mod:`hemstitch.optim`, :mod:`hemstitch.order`, :mod:`hemstitch.criteria`,
  :mod:`hemstitch.speech`, :mod:`hemstitch.parallel`
- composition: :mod:`hemstitch.train`, :mod:`hemstitch.report`, :mod:`hemstitch.reproduce`, the command line

Importing this package loads none of them (and not torch), so that ``hemstitch --help`` answers at once.
"""

__version__ = "0.1.0"
