"""Text on a page: foreign strings made harmless, numbers made readable.

Every string that comes from a file goes through `clean` before it stands in HTML. Every number that a reader may want
to check stands in a <data> element whose value attribute holds it in full precision.
"""

import html
import json
import math
import unicodedata
from typing import cast

KEPT = "\n\t"


def clean(value: object) -> str:
    """HTML-escaped text (quotes too) with control and invisible direction characters replaced by U+FFFD."""
    shown = "".join(
        c if c in KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "\ufffd" for c in str(value)
    )
    return html.escape(shown, quote=True)


def brief(value: object) -> str:
    """A JSON value in one line, as a user would write it; not escaped."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.1f}" if abs(value) < 1e6 else f"{value:g}"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "_") if abs(value) >= 10_000 else str(value)
    if isinstance(value, dict):  # {"schedule": "Linear", "start": 1} reads Linear(start=1)
        parts = dict(cast("dict[str, object]", value))
        name = next((parts.pop(kind) for kind in ("schedule", "network", "custom") if kind in parts), None)
        if name is not None:
            return f"{name}({', '.join(f'{k}={brief(v)}' for k, v in parts.items())})"
    return json.dumps(value, ensure_ascii=False)


def decimals(*values: float) -> int:
    """How many decimals a group of scores needs, so that the largest shows about four significant digits."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0.0:
        return 0
    return min(4, max(0, 3 - math.floor(math.log10(largest))))


def plain(value: float, places: int | None = None) -> str:
    """A number for reading: thousands separated, a true minus sign, an en dash for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if places is None and value and (size >= 1e7 or size < 1e-3):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    if places is None:
        places = 0 if size >= 1000 or float(value).is_integer() else decimals(value)
        digits = f"{value:,.{places}f}"
        return (digits.rstrip("0").rstrip(".") if places else digits).replace("-", "−")
    return f"{value:,.{places}f}".replace("-", "−")


def data(value: float, places: int | None = None) -> str:
    """The number as a <data> element: rounded for the eye, exact in the attribute."""
    if math.isnan(value):
        return "–"
    return f'<data value="{value!r}">{plain(value, places)}</data>'


def bracket(low: float, high: float, places: int | None = None) -> str:
    """An interval "[low, high]", or nothing where it does not exist."""
    if math.isnan(low) or math.isnan(high):
        return ""
    places = decimals(low, high) if places is None else places
    return f"[{data(low, places)}, {data(high, places)}]"


def tick(value: float, spacing: float) -> str:
    """An axis label: 0, 0.25, 40, 20k, 1.5M; powers of ten where the labels are finer than that."""
    if value == 0 or abs(value) < spacing * 1e-6:
        return "0"
    size = abs(value)
    if (spacing < 5e-4 and size < 0.1) or size >= 1e9:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    scale, unit = (
        (1e6, "M") if size >= 1e6 else (1e3, "k") if size >= 1e4 or (size >= 1e3 and spacing >= 100) else (1, "")
    )
    text = f"{value / scale:.6f}".rstrip("0").rstrip(".")
    return f"{text}{unit}".replace("-", "−")


def span(seconds: float) -> str:
    """A duration: 0.8 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if math.isnan(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
