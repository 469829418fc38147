"""Policies that choose where to cut, one file each; `base.py` has their interface and registry."""
