"""Speed and cost, measured beside the same container without a shim, in turn, in one run."""
