"""One detector a file: its theory, its state arrays, and its `score` and `learn` kernels.

`score` reads the state and changes nothing but bringing its rings up to date; `learn` counts the
call, after the policy has decided. Both are called once per tool call, in the order of the stream.
"""
