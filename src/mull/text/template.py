"""Chat templates: programs in Jinja, published with a model, that write a conversation as its model was taught to read.

They are rendered as transformers renders them (apply_chat_template), under limits of time and size (text/sandbox.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

import jinja2

from mull.text.sandbox import PER_CHARACTER, ROOM, Budget, Exhausted, Sandbox
from mull.types import UserError

LONGEST = 64_000  # characters, which compile within a second; published ones have up to 30,000 or so

Plain = Mapping[str, Any]


class Template:
    """Raises UserError for a source that is no Jinja, is too long, or uses what no chat template needs."""

    def __init__(self, source: str):
        if len(source) > LONGEST:
            raise UserError(f"The chat template has {len(source):,} characters; more than {LONGEST:,} are not read.")
        self.source = source
        self._environment = Sandbox()
        self._lock = Lock()
        try:
            self._compiled = self._environment.compiled(source)
            self._globals = dict(self._compiled.globals)
        except jinja2.exceptions.SecurityError as error:
            raise UserError(f"The chat template cannot be used safely: {_line(error)}.") from None
        except Exception as error:  # Jinja's own errors, and Python's for nesting that is too deep
            raise UserError(f"The chat template is not valid Jinja: {_line(error)}.") from None

    def render(
        self, messages: Sequence[Plain], add_generation_prompt: bool = True, tools: Sequence[Plain] | None = None,
        documents: Sequence[Plain] | None = None, **variables: Any,
    ) -> str:  # fmt: skip
        """The conversation as text. `variables` are the template's own: bos_token, enable_thinking and the like.

        All are plain data, as from JSON. Raises UserError where the template refuses the conversation, breaks on it, or
        does not end within a second and within memory in proportion to the conversation.
        """
        given = {
            "messages": messages, "tools": tools, "documents": documents,
            "add_generation_prompt": add_generation_prompt, **variables,
        }  # fmt: skip
        with self._lock:
            try:
                self._environment.budget = Budget(ROOM + PER_CHARACTER * len(repr(given)))
                context = self._compiled.new_context(self._globals | given, shared=True)
                return "".join(self._compiled.root_render_func(context))
            except (Exhausted, MemoryError) as error:
                raise UserError(f"The chat template does not end: {_line(error)}.") from None
            except jinja2.UndefinedError as error:
                raise UserError(f"The chat template breaks on this conversation: {_line(error)}.") from None
            except jinja2.TemplateError as error:
                raise UserError(f"The chat template refuses this conversation: {_line(error)}.") from None
            except Exception as error:  # a template is a program, and may fail in any way
                raise UserError(f"The chat template breaks on this conversation: {_line(error)}.") from None


def _line(error: BaseException) -> str:
    said = " ".join(str(error).split()) or type(error).__name__
    return said.rstrip(".")[:500]


__all__ = ["LONGEST", "Plain", "Template"]
