"""What `fogline up` measured: the evaluation, `report.json` and `report.html`."""
