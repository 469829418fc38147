"""The part of a split model that another host runs: what executes it, and what stands for it in a training script."""
