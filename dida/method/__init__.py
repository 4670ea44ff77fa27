"""Sec. III as strategies: one file per subsection, each strategy a frozen dataclass that is called.

What they are made of is decided in `dida.assemble`, the only place that knows both them and the config.
"""
