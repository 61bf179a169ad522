"""The benchmarks that ship with the package: every kernel in every variant beside its peers, and tuning advice.

`report.run` measures and returns one document; `report.lines` prints it, `tuning.toml` is the part to paste into
a node's configuration, `chart.draw` the picture. Nothing else in the package imports this layer but the command
line.
"""
