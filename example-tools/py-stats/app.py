"""Statistics of a list of numbers, exact where they can be."""

import json
import statistics
from decimal import Decimal

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.toolbox import CallResult, Content_Text, Description, Function
from wit_world.imports import wasi_config_store as store

# More numbers than this a model does not pass.
NUMBERS_MAX = 10_000

INPUT = {
    "type": "object",
    "properties": {
        "numbers": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 1,
            "maxItems": NUMBERS_MAX,
            "description": "The numbers to look at.",
        },
    },
    "required": ["numbers"],
    "additionalProperties": False,
}

OUTPUT = {
    "type": "object",
    "properties": {
        "count": {"type": "integer"},
        "sum": {"type": "string"},
        "mean": {"type": "string"},
        "median": {"type": "string"},
        "standard_deviation": {"type": "string"},
        "least": {"type": "string"},
        "most": {"type": "string"},
    },
    "required": ["count", "sum", "mean", "median", "least", "most"],
}


def describe(numbers: list[Decimal], digits: int) -> dict:
    """The figures, each a decimal in text, rounded to so many digits after the point."""

    def shown(value: Decimal) -> str:
        text = f"{round(value, digits):f}"
        return text.rstrip("0").rstrip(".") if "." in text else text

    figures = {
        "count": len(numbers),
        "sum": shown(sum(numbers)),
        "mean": shown(statistics.mean(numbers)),
        "median": shown(statistics.median(numbers)),
        "least": shown(min(numbers)),
        "most": shown(max(numbers)),
    }
    if len(numbers) > 1:
        figures["standard_deviation"] = shown(statistics.stdev(numbers))
    return figures


class Toolbox(exports.Toolbox):
    def describe(self) -> Description:
        function = Function(
            name="describe",
            description="Count, sum, mean, median, standard deviation, least and most of a list of numbers.",
            input_schema=json.dumps(INPUT),
            output_schema=json.dumps(OUTPUT),
        )
        requires = {"config": {"digits": "digits after the point in the answers; 6 if left out"}}
        return Description(functions=[function], requires=json.dumps(requires))

    def call(self, function: str, arguments: str) -> CallResult:
        if function != "describe":
            return failure(f"this tool has no function `{function}`")
        numbers = json.loads(arguments, parse_float=Decimal, parse_int=Decimal)["numbers"]
        try:
            digits = store.get("digits")
        except Err as error:
            return failure(f"the configuration cannot be read: {error.value}")
        structured = json.dumps(describe(numbers, int(digits or "6")))
        return CallResult(content=[Content_Text(structured)], structured=structured, is_error=False)


def failure(words: str) -> CallResult:
    return CallResult(content=[Content_Text(words)], structured=None, is_error=True)
