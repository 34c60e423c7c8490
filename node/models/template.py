"""Chat templates: from messages to the prompt's text, as transformers renders it.

A template comes with the model, from strangers: it runs in jinja2's immutable sandbox, which reaches no attribute that
could leave it, and within the limits of `template_limits`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn, Protocol

from node.errors import BadRequest, DamagedModel
from node.models.template_limits import (
    TemplateTooLong,
    bounded_environment,
    bounded_filter,
    bounded_time,
    joined,
)

if TYPE_CHECKING:
    from jinja2 import Environment

Message = Mapping[str, object]


MOST_INDENT = 16
"""Of JSON that a template writes: a wider one would make megabytes of a few brackets."""

NOTHING: Mapping[str, object] = {}


class Render(Protocol):
    """From messages to the prompt's text, which ends where the answer begins."""

    def __call__(
        self,
        messages: Sequence[Message],
        special_tokens: Mapping[str, str],
        tools: Sequence[object] = (),
        options: Mapping[str, object] = NOTHING,
    ) -> str:
        """Args:
            special_tokens: by the names that templates have for them.
            tools: definitions of functions, in OpenAI's form.
            options: what this model's template may know beside, as `enable_thinking`.

        Raises:
            BadRequest: the template refuses these messages.
        """


def compile_template(text: str, where: str) -> Render:
    """The template as a function.

    Raises:
        DamagedModel: the text is no template.
    """
    from jinja2 import TemplateError

    try:
        template = _environment().from_string(text)
    except (TemplateError, RecursionError, ValueError, OverflowError, MemoryError) as error:
        raise DamagedModel(where, f"the chat template cannot be read ({error})") from error
    template.root_render_func.__globals__["str_join"] = joined  # what `~` is compiled to
    filename = template.root_render_func.__code__.co_filename

    def render(
        messages: Sequence[Message],
        special_tokens: Mapping[str, str],
        tools: Sequence[object] = (),
        options: Mapping[str, object] = NOTHING,
    ) -> str:
        named = {
            **options,
            **special_tokens,
            "messages": list(messages),
            "tools": list(tools) or None,  # some ask whether it is none
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            with bounded_time(filename):
                return template.render(named)
        except TemplateTooLong:
            raise BadRequest("messages", "the model's chat template does not come to an end with them") from None
        except (
            MemoryError,
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise BadRequest("messages", f"the model's chat template does not take them ({error})") from error

    return render


def _environment() -> Environment:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is merely read over."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(layout: str) -> str:
        return datetime.now().strftime(layout)

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # jinja2's own escapes for HTML; the names and their order are those of transformers
        width = None if indent is None else min(indent, MOST_INDENT)
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=width, separators=separators, sort_keys=sort_keys)

    environment: Environment = bounded_environment(ImmutableSandboxedEnvironment)(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    for name in ("center", "indent", "batch", "slice", "format"):
        environment.filters[name] = bounded_filter(environment.filters[name])
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
