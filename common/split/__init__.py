"""Where a model can be cut, what each cut costs on a link, and the choice among cuts."""
