"""What render.py draws dashboards with: asking Prometheus as Grafana does, writing numbers as Grafana does, panels."""
