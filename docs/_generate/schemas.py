"""JSON Schemas of the YAML files, for completion and checks in editors.

`make schemas` writes them to configs/schema/. They come from the models that read the files, so a
schema never names a setting that does not exist. Rules that join two settings are not in them.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from client.config import Hours
from common.config import ClassifierConfig
from docs._generate.files import FILES
from docs._generate.meanings import meaning

FOLDER = Path(__file__).parents[2] / "configs" / "schema"

_HOURS = {
    "type": "string",
    "pattern": r"^\s*\d{1,2}:\d{2}\s*-\s*\d{1,2}:\d{2}\s*$",
    "examples": ["19:00-07:00"],
}


class _Schema(GenerateJsonSchema):
    """pydantic's schema, with each setting's meaning, and `kind` required where a model has one."""

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        made = super().str_schema(schema)
        return made | {"type": ["string", "number"]} if schema.get("coerce_numbers_to_str") else made

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        model = schema["cls"]
        if model is Hours:
            return {**_HOURS, "description": Hours.__doc__}
        made = super().model_schema(schema)
        for name, setting in made.get("properties", {}).items():
            setting.pop("title", None)
            if (text := meaning(model, name)) is not None:
                setting["description"] = " ".join(text.split())
        # A classifier is what a model without `kind` is; every other choice has to be named.
        if "kind" in model.model_fields and model is not ClassifierConfig:
            made["required"] = sorted({*made.get("required", []), "kind"})
        return made


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of one kind of file."""
    file = FILES[name]
    made = file.model.model_json_schema(schema_generator=_Schema)
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "title": f"Consilium: {file.title}",
        **_untitled(made),
    }


def _untitled(made: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in made.items() if key != "title"}


def path_of(name: str) -> Path:
    """Where the schema of one kind of file is kept."""
    return FOLDER / f"{name}.schema.json"


def text(name: str) -> str:
    """The schema as it is kept."""
    return json.dumps(schema(name), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Write every schema."""
    FOLDER.mkdir(exist_ok=True)
    for name in FILES:
        path_of(name).write_text(text(name), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
