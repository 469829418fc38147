"""The tensor plane: what the parts of a step take, where models are cut, what links carry, and how tail hosts do."""

from __future__ import annotations

from fogline.deploy.grafana.panels import GREEN, RED, YELLOW, Dashboard, Row, Variable, figure, lines, states

DEVICE = 'job="fogline-split", instance=~"$device"'
HOST = 'job="fogline-tail", instance=~"$host"'
RATE = "[$__rate_interval]"


def _mean(metric: str, by: str, labels: str) -> str:
    return (
        f"sum by ({by}) (rate({metric}_sum{{{labels}}}{RATE})) / sum by ({by}) (rate({metric}_count{{{labels}}}{RATE}))"
    )


def _quantile(q: float, metric: str, by: str, labels: str) -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({metric}_bucket{{{labels}}}{RATE})))"


TENSOR_PLANE = Dashboard(
    uid="fogline-tensor-plane",
    title="Fogline: tensor plane",
    description="Programs that split a model (job fogline-split) and the tail hosts that they use (job fogline-tail).",
    variables=(
        Variable("device", "Program", 'label_values(fogline_build_info{tier="split"}, instance)'),
        Variable("host", "Tail host", 'label_values(fogline_build_info{tier="tail"}, instance)'),
    ),
    rows=(
        Row(
            "Now",
            (
                figure(
                    "Calls",
                    "Calls a second of all split models.",
                    f"sum(rate(fogline_split_calls_total{{{DEVICE}}}{RATE}))",
                    unit="cps",
                    decimals=2,
                ),
                figure(
                    "Answered by hosts",
                    "Share of the calls that a tail host answered; devices answered the rest alone.",
                    f'sum(rate(fogline_split_calls_total{{{DEVICE}, by="host"}}{RATE})) / '
                    f"sum(rate(fogline_split_calls_total{{{DEVICE}}}{RATE}))",
                    unit="percentunit",
                ),
                figure(
                    "Programs connected",
                    "Programs whose session is with a host now.",
                    f"sum(fogline_split_connected{{{DEVICE}}})",
                    unit="none",
                    steps=((RED, None), (GREEN, 1)),
                ),
                figure(
                    "Link rate",
                    "Least of the rates that programs estimate of their links.",
                    f"min(fogline_split_link_rate_bytes_per_second{{{DEVICE}}} >= 0)",
                    unit="Bps",
                ),
                figure(
                    "Sessions",
                    "Sessions in the memory of tail hosts.",
                    f"sum(fogline_tail_sessions{{{HOST}}})",
                    unit="none",
                ),
                figure(
                    "Failed operations",
                    "Share of the operations that tail hosts failed, over five minutes.",
                    f"max(fogline:tail_failed_operations:ratio5m{{{HOST}}}) or "
                    f"max(0 * fogline_tail_sessions{{{HOST}}})",
                    unit="percentunit",
                    steps=((GREEN, None), (YELLOW, 0.001), (RED, 0.05)),
                ),
            ),
        ),
        Row(
            "Steps",
            (
                lines(
                    "Parts of a step",
                    "Mean time of each part of an operation, stacked: head, encode and decode on the device, link, "
                    "waiting for the host's turn, tail at the host.",
                    ('fogline:split_seconds:mean5m{operation!="local"}', "{{operation}} {{part}}"),
                    unit="s",
                    stack=True,
                ),
                lines(
                    "Parts of a step, 95 %",
                    "Nineteen of twenty take less. A link whose 95 % is far above its mean is what a deadline is for.",
                    (_quantile(0.95, "fogline_split_seconds", "part", DEVICE), "{{part}}"),
                    unit="s",
                ),
                lines(
                    "Whole calls of AdaptiveModel",
                    "From the call to its answer, by who answered.",
                    (_quantile(0.5, "fogline_split_call_seconds", "by", DEVICE), "{{by}} 50 %"),
                    (_quantile(0.95, "fogline_split_call_seconds", "by", DEVICE), "{{by}} 95 %"),
                    unit="s",
                ),
                lines(
                    "Cut in use",
                    "Calls a second by where the model was cut: local is no cut, input is no head.",
                    (f"sum by (cut) (rate(fogline_split_calls_total{{{DEVICE}}}{RATE}))", "{{cut}}"),
                    unit="cps",
                    stack=True,
                ),
                lines(
                    "Codec in use",
                    "Calls a second by the tensor codec of the session.",
                    (f"sum by (codec) (rate(fogline_split_calls_total{{{DEVICE}}}{RATE}))", "{{codec}}"),
                    unit="cps",
                    stack=True,
                ),
                lines(
                    "Who answers",
                    "Calls a second that hosts and devices answered. Devices take over when a host is late.",
                    (f"sum by (by) (rate(fogline_split_calls_total{{{DEVICE}}}{RATE}))", "{{by}}"),
                    unit="cps",
                    stack=True,
                ),
            ),
        ),
        Row(
            "Links",
            (
                lines(
                    "Rate estimate",
                    "What AdaptiveModel thinks that the link to its host carries, by which it cuts. 0: no link.",
                    (f"fogline_split_link_rate_bytes_per_second{{{DEVICE}}}", "{{instance}}"),
                    unit="Bps",
                ),
                lines(
                    "Throughput while something moves",
                    "Coded bytes over the time that operations spent on the link: what a RemoteTail saw of its link.",
                    (
                        f"sum by (instance) (rate(fogline_split_tensor_bytes_total{{{DEVICE}}}{RATE})) / "
                        f'sum by (instance) (rate(fogline_split_seconds_sum{{{DEVICE}, part="link"}}{RATE}))',
                        "{{instance}}",
                    ),
                    unit="Bps",
                ),
                lines(
                    "Round trip",
                    "Smoothed, as AdaptiveModel measures it.",
                    (f"fogline_split_link_round_trip_seconds{{{DEVICE}}}", "{{instance}}"),
                    unit="s",
                ),
                lines(
                    "Tensor bytes",
                    "Coded bytes of activations and gradients, by direction and codec.",
                    (
                        f"sum by (direction, codec) (rate(fogline_split_tensor_bytes_total{{{DEVICE}}}{RATE}))",
                        "{{direction}} {{codec}}",
                    ),
                    unit="Bps",
                ),
                lines(
                    "What codecs save",
                    "Bytes uncoded over bytes coded.",
                    (
                        f"sum by (direction, codec) (rate(fogline_split_raw_bytes_total{{{DEVICE}}}{RATE})) / "
                        f"sum by (direction, codec) (rate(fogline_split_tensor_bytes_total{{{DEVICE}}}{RATE}))",
                        "{{direction}} {{codec}}",
                    ),
                    unit="none",
                ),
                states(
                    "Connections",
                    "Whether each program's session is with a host.",
                    f"fogline_split_connected{{{DEVICE}}}",
                    "{{instance}}",
                    (("no host", RED), ("connected", GREEN)),
                ),
            ),
        ),
        Row(
            "Tail hosts",
            (
                lines(
                    "Operations",
                    "Operations a second, by kind.",
                    (f"sum by (kind) (rate(fogline_tail_operations_total{{{HOST}}}{RATE}))", "{{kind}}"),
                    unit="ops",
                    stack=True,
                ),
                lines(
                    "Operations by outcome",
                    "failed: the model or its input was wrong, or memory ran out; the host's log says with what.",
                    (
                        f"sum by (instance, outcome) (rate(fogline_tail_operations_total{{{HOST}}}{RATE}))",
                        "{{instance}} {{outcome}}",
                    ),
                    unit="ops",
                ),
                lines(
                    "Computing and waiting",
                    "Mean seconds of an operation at a host. Waiting is for its turn among the sessions.",
                    (
                        f"sum by (instance) (rate(fogline_tail_compute_seconds_total{{{HOST}}}{RATE})) / "
                        f"sum by (instance) (rate(fogline_tail_operations_total{{{HOST}}}{RATE}))",
                        "{{instance}} computes",
                    ),
                    (f"fogline:tail_queued_seconds:mean5m{{{HOST}}}", "{{instance}} waits"),
                    unit="s",
                    limit=0.5,
                ),
                lines(
                    "Tensors by role",
                    "Coded bytes a second that hosts receive and send.",
                    (
                        f"sum by (direction, role) (rate(fogline_tail_tensor_bytes_total{{{HOST}}}{RATE}))",
                        "{{direction}} {{role}}",
                    ),
                    unit="Bps",
                ),
                lines(
                    "Sessions by host",
                    "Sessions in memory; one that is gone for longer than its time to live is on disk alone.",
                    (f"fogline_tail_sessions{{{HOST}}}", "{{instance}}"),
                    unit="none",
                ),
                lines(
                    "Kept for clients",
                    "Coded bytes of operations that wait, and of answers that no client has acknowledged.",
                    (f"fogline_tail_kept_bytes{{{HOST}}}", "{{instance}}"),
                    unit="bytes",
                ),
            ),
        ),
    ),
)
