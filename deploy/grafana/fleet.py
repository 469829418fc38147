"""The fleet at a glance: who is there, how the hosts are, what goes over the links."""

from __future__ import annotations

from fogline.deploy.grafana.panels import (
    GREEN,
    IMAGES_S,
    RED,
    YELLOW,
    Column,
    Dashboard,
    Row,
    Variable,
    figure,
    lines,
    states,
    table,
)

ME = 'job=~"$job", instance=~"$instance"'
WHO = "{{job}} {{instance}}"

FLEET = Dashboard(
    uid="fogline-fleet",
    title="Fogline: fleet",
    description="Every process of a deployment: whether it answers, what it uses, what it complains of.",
    variables=(
        Variable("job", "Job", 'label_values(up{job=~"fogline-.*"}, job)'),
        Variable("instance", "Instance", 'label_values(up{job=~"$job"}, instance)'),
    ),
    rows=(
        Row(
            "Now",
            (
                figure(
                    "Edges that answer",
                    "Edge agents that Prometheus reaches.",
                    'count(up{job="fogline-edge"} == 1) or vector(0)',
                    unit="none",
                    steps=((RED, None), (GREEN, 1)),
                ),
                figure(
                    "Targets down",
                    "Processes that Prometheus should reach and does not.",
                    'count(up{job=~"fogline-.*"} == 0) or vector(0)',
                    unit="none",
                    steps=((GREEN, None), (RED, 1)),
                ),
                figure(
                    "Devices in the fleet",
                    "Devices that sent a heartbeat to the cloud server within three intervals, scraped or not.",
                    'sum(fogline_devices_alive{job="fogline-cloud"})',
                    unit="none",
                    steps=((RED, None), (GREEN, 1)),
                ),
                figure(
                    "Firing alerts",
                    "Of the rules in deploy/prometheus/rules. What to do is in docs/monitoring.md.",
                    'count(ALERTS{alertstate="firing", alertname=~"Fogline.*"}) or vector(0)',
                    unit="none",
                    steps=((GREEN, None), (RED, 1)),
                ),
                figure(
                    "Captured",
                    "Images a second that all edges take from their sources.",
                    'sum(rate(fogline_captured_images_total{job="fogline-edge"}[$__rate_interval]))',
                    unit=IMAGES_S,
                    decimals=2,
                ),
                figure(
                    "On the wire",
                    "Bytes a second over all links of the image plane, each counted once.",
                    "sum(fogline:wire_bytes:rate5m)",
                    unit="Bps",
                ),
            ),
        ),
        Row(
            "Processes",
            (
                table(
                    "Processes",
                    "One row for each scraped process.",
                    (
                        Column("Healthy", f"fogline_healthy{{{ME}}}", "bool_yes_no", ((RED, None), (GREEN, 1))),
                        Column("Uptime", f"fogline_uptime_seconds{{{ME}}}", "s"),
                        Column("CPU cores", f"fogline:cpu_cores:rate5m{{{ME}}}", "none"),
                        Column("Memory", f"sum without (of) (fogline_resident_bytes{{{ME}}})", "bytes"),
                        Column(
                            "Disk free",
                            f"fogline:disk_free:ratio{{{ME}}}",
                            "percentunit",
                            ((RED, None), (YELLOW, 0.1), (GREEN, 0.2)),
                        ),
                        Column(
                            "Certificate expires in",
                            f'fogline_certificate_not_after_seconds{{{ME}, of="process"}} - time()',
                            "s",
                            ((RED, None), (YELLOW, 3600), (GREEN, 86400)),
                        ),
                    ),
                    ("job", "instance"),
                    height=9,
                ),
                states(
                    "Health",
                    "What /healthz of each process says; a gap: it was not reached.",
                    f"fogline_healthy{{{ME}}}",
                    WHO,
                    (("not well", RED), ("well", GREEN)),
                ),
                states(
                    "Connections of edges",
                    "Whether each edge has a connection to its fog node and to the cloud server.",
                    'fogline_connected{job="fogline-edge", instance=~"$instance"}',
                    "{{instance}} {{link}}",
                    (("not connected", RED), ("connected", GREEN)),
                ),
                lines(
                    "Devices by role",
                    "What the cloud server knows: devices that joined and did not leave, and those that it hears.",
                    ('sum by (role) (fogline_devices_known{job="fogline-cloud"})', "{{role}} known"),
                    ('sum by (role) (fogline_devices_alive{job="fogline-cloud"})', "{{role}} alive"),
                    unit="none",
                ),
            ),
        ),
        Row(
            "Hosts",
            (
                lines(
                    "CPU",
                    "Cores that each process and its children use. An idle edge is below 0.01.",
                    (f"fogline:cpu_cores:rate5m{{{ME}}}", WHO),
                    unit="none",
                ),
                lines(
                    "Memory",
                    "Resident memory of each process; children are the encoder, the trainer, the tail host.",
                    (f"fogline_resident_bytes{{{ME}}}", f"{WHO} {{{{of}}}}"),
                    unit="bytes",
                ),
                lines(
                    "Open files",
                    "File descriptors of each process: flat, once all connections are made.",
                    (f"fogline_open_files{{{ME}}}", WHO),
                    unit="none",
                ),
                lines(
                    "Free disk",
                    "Share of the disk with data_dir that is free. Uploads and captures stop when it is full.",
                    (f"fogline:disk_free:ratio{{{ME}}}", WHO),
                    unit="percentunit",
                    limit=0.1,
                    at_least=True,
                    limits=(0, 1),
                ),
                lines(
                    "Certificates",
                    "Lifetime that is left of each certificate. Renewed ones jump up at a third.",
                    (f"fogline:certificate_left:ratio{{{ME}}}", f"{WHO} {{{{of}}}}"),
                    unit="percentunit",
                    limit=0.2,
                    at_least=True,
                    limits=(None, 1),
                ),
                lines(
                    "Clocks",
                    "How far each host's clock is from this Prometheus's; up to a scrape's duration is noise.",
                    (f"fogline_time_seconds{{{ME}}} - timestamp(fogline_time_seconds{{{ME}}})", WHO),
                    unit="s",
                    limits=(None, None),
                ),
            ),
        ),
        Row(
            "Boards",
            (
                lines(
                    "Temperature",
                    "By the kernel's thermal zones; nothing for hosts without any. Boards slow down at about 80 °C.",
                    (f"fogline_board_celsius{{{ME}}}", f"{WHO} {{{{zone}}}}"),
                    unit="celsius",
                    limit=80,
                    limits=(None, None),
                ),
                states(
                    "Throttling",
                    "Whether a board runs slower than it could, and why. under_voltage: a stronger power supply helps.",
                    f"fogline_board_throttled{{{ME}}}",
                    f"{WHO} {{{{reason}}}}",
                    (("no", GREEN), ("slower", RED)),
                ),
                lines(
                    "Power",
                    "Electrical power by supply rail, of boards that measure it.",
                    (f"fogline_board_power_watts{{{ME}}}", f"{WHO} {{{{rail}}}}"),
                    unit="watt",
                ),
            ),
        ),
        Row(
            "What they complain of",
            (
                lines(
                    "Warnings and errors",
                    "Log lines from warnings up, by level and the class of the error that they tell of.",
                    (
                        f"sum by (level, error) (increase(fogline_log_records_total{{{ME}}}[$__rate_interval]))",
                        "{{level}} {{error}}",
                    ),
                    unit="none",
                    stack=True,
                    width=12,
                ),
                lines(
                    "Restarts",
                    "How often each process began anew within an hour.",
                    (f"resets(fogline_uptime_seconds{{{ME}}}[1h])", WHO),
                    unit="none",
                    limit=3,
                    width=12,
                ),
            ),
        ),
        Row(
            "Links",
            (
                lines(
                    "Bytes by link",
                    "Each byte once: sent and received as the lower tier sees it.",
                    ("sum by (link, direction) (fogline:link_bytes:rate5m)", "{{link}} {{direction}}"),
                    unit="Bps",
                ),
                lines(
                    "Bytes by process",
                    "What each process sends and receives itself.",
                    (
                        f"sum by (job, instance, direction) (rate(fogline_link_bytes_total{{{ME}}}[$__rate_interval]))",
                        f"{WHO} {{{{direction}}}}",
                    ),
                    unit="Bps",
                ),
                lines(
                    "Outboxes",
                    "Images that wait on edges for upload.",
                    ('fogline_outbox_images{job="fogline-edge", instance=~"$instance"}', "{{instance}}"),
                    unit="none",
                ),
            ),
        ),
    ),
)
