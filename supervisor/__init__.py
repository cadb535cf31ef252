"""The control plane of forkshim: it decides, and never touches a byte of the payload's streams."""

__version__ = "0.1.0"
