"""The report's headline as tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from fogline.deploy.local.view import human_bytes, human_seconds
from fogline.report import prose
from fogline.report.document import summary_of
from fogline.report.findings import Findings
from fogline.report.page import chosen_rows, decibel, rate


def show(console: Console, found: Findings) -> None:
    """Print what matters most."""
    console.print(_bytes(found))
    console.print(_quality(found))
    if found.chosen:
        console.print(_chosen(found))
    if found.trials:
        console.print(_codecs(found))
    if found.comparison is not None:
        console.print(_training(found))
    complete = "complete" if not found.lost and not found.duplicated else "[bold red]NOT COMPLETE[/]"
    console.print(
        f"{complete}: {found.images} images, {found.lost} lost, {found.duplicated} duplicated; usable at a receiver "
        f"after {human_seconds(found.delay.p50)} (median), {human_seconds(found.delay.p95)} (95 %)",
        highlight=False,
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _bytes(found: Findings) -> Table:
    traffic = found.traffic
    table = _table(f"bytes on the wire, {len(found.edges)} devices, {found.images} images", "way", "bytes", "gain")
    table.add_row("JPEGs as captured, every device to every other", human_bytes(traffic.serverless), "")
    table.add_row("the same, resized first (quality 75)", human_bytes(traffic.serverless_resized), "")
    table.add_row(f"through the fog node, {found.codec}", human_bytes(traffic.total), "")
    table.add_row("  gain over JPEGs as captured", "", f"{traffic.gain_vs_source:.2f}x")
    table.add_row("  gain over JPEGs resized first", "", f"{traffic.gain_vs_resized:.2f}x")
    table.add_row("  n/(beta + alpha n) predicts, without control", "", f"{found.model.gain:.2f}x")
    table.add_row(f"  alpha {found.model.alpha:.3f}, beta {found.model.beta:.3f} (uplink {found.uplink})", "", "")
    for name in ("uplink", "downlink", "shared_state", "control"):
        table.add_row(f"  {name.replace('_', ' ')}", human_bytes(getattr(traffic, name)), "")
    return table


def _quality(found: Findings) -> Table:
    figures = summary_of(found.scores)
    table = _table("quality against the original at training resolution", "PSNR", "dB")
    for name, key in (
        ("whole frame", "full_psnr_db"),
        ("background", "background_psnr_db"),
        ("objects", "object_psnr_db"),
        ("objects, background layer alone", "object_psnr_background_layer_alone_db"),
    ):
        table.add_row(name, decibel(figures[key]))
    return table


def _chosen(found: Findings) -> Table:
    table = Table(title="what auto chose", title_justify="left", title_style="bold")
    for column in ("camera", "codec", "why", "why not another"):
        table.add_column(column)
    for row in chosen_rows(found):
        table.add_row(row["camera"], f"{row['codec']}\n{row['params']}", row["reason"], row["others"])
    return table


def _codecs(found: Findings) -> Table:
    table = _table(
        "the same frames in a row through every codec",
        "codec",
        "bytes, with shared state",
        "dB",
        "object dB",
        "encode/s",
        "decode/s",
    )
    for one in found.trials:
        table.add_row(
            one.codec + (" (this run)" if one.this_run else ""),
            f"{one.bytes_per_image:,.0f}",
            decibel(one.full_db),
            decibel(one.object_db),
            rate(one.encode_per_s),
            rate(one.decode_per_s),
        )
    return table


def _training(found: Findings) -> Table:
    compared = found.comparison
    assert compared is not None
    name = prose.metric_name(compared.metric)
    table = _table(f"detector after {compared.steps} steps, {len(compared.seeds)} seed(s)", "trained on", name)
    table.add_row("source images", f"{prose.average(compared.on_source):.3f}")
    table.add_row("decoded images", f"{prose.average(compared.on_decoded):.3f}")
    table.add_row("nothing: constant answer for each camera", f"{compared.constant_box_per_camera:.3f}")
    table.add_row("nothing: untrained", f"{compared.untrained:.3f}")
    return table
