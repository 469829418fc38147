"""The fleet as its cloud server tells it, for `fogline status`."""
