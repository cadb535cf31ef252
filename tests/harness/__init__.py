"""What the tests share: bundles, an engine's side of the protocol, and a look for leaks."""
