"""The data plane of forkshim: forked processes that move bytes and decide nothing.

Never imports `supervisor`: the supervisor passes each worker what it needs before fork(2).
"""
