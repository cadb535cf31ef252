"""The data plane of forkshim: forked processes that move bytes and decide nothing.

Never imports `supervisor`: what a worker has to know, it is handed before the fork.
"""
