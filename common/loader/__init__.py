"""Training input from records: batches decoded on the training device, only what each view shows."""
