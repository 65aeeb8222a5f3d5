"""The rows as a Markdown table."""

from typing import Any

from .results import Report, is_done

_COLUMNS = {
    "films x sections": lambda row: f"{row['films']} x {row['sections']}",
    "prompt obeyed": lambda row: _percent(row["obeyed"]),
    "direction": lambda row: _percent(row["direction"]),
    "colour": lambda row: _percent(row["colour"]),
    "shape": lambda row: _percent(row["shape"]),
    "first frame": lambda row: _number(row["first_frame_psnr"]),
    "VAE alone": lambda row: _number(row.get("vae_psnr")),
    "frames 1-4": lambda row: _number(row["handover_psnr"]),
    "first section": lambda row: _number((row["section_psnr"] or [None])[0]),
    "last section": lambda row: _number((row["section_psnr"] or [None])[-1]),
    "last frame": lambda row: _number(row["last_frame_psnr"]),
    "model calls": lambda row: _number(row.get("model_calls"), 0),
    "sampling": lambda row: _number(row.get("sampling_s_per_film"), 3),
    "decoding": lambda row: _number(row.get("decoding_s_per_film"), 3),
    "same as": lambda row: row["same_as"] or "",
}

_EXPLANATION = """\
Prompt obeyed: share of sections whose motion, judged from the pixels, is the prompt's. Direction: of the sections that
travel. Colour, shape: of the object in the last frame. Then PSNR in dB, mean over films: the first
frame against the start image, beside what the VAE alone makes of that image; the first four generated frames, the first
and the last section and the last frame against the world's own film. Model calls: of one batch of films. Sampling,
decoding: seconds per film in that batch. Same as: an earlier row with the same latents, bit for bit. Rows called
MISTAKE are made wrong on purpose; their figures must fall."""


def markdown(report: Report) -> str:
    """The report as a page: what it was made with, the table, what the columns mean."""
    lines = ["# Evaluation of the demo checkpoint", ""]
    lines += [", ".join(f"{name} {value}" for name, value in report["made_with"].items()) + ".", ""]
    lines += [_line("", *_COLUMNS), _line("---", *["---:"] * len(_COLUMNS))]
    rows = mark_same(report["rows"])
    for name, row in rows.items():
        lines.append(_line(name, *_cells(row)))
    return "\n".join([*lines, "", _EXPLANATION, ""])


def mark_same(rows: dict[str, Any]) -> dict[str, Any]:
    """The rows, each with the name of the first earlier one of equal latents under `same_as`."""
    first: dict[str, str] = {}
    marked = {}
    for name, row in rows.items():
        digest = row.get("latents_sha256")
        marked[name] = {**row, "same_as": first.get(digest) if digest else None}
        if digest:
            first.setdefault(digest, name)
    return marked


def _cells(row: dict[str, Any]) -> list[str]:
    if is_done(row):
        return [write(row) for write in _COLUMNS.values()]
    reason = row.get("not_here") or f"FAILED: {row.get('failed')}"
    return [reason.splitlines()[0].replace("|", "/"), *[""] * (len(_COLUMNS) - 1)]


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
