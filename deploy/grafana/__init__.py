"""Grafana dashboards as code: `python -m fogline.deploy.grafana` writes `dashboards/*.json` for Grafana."""
