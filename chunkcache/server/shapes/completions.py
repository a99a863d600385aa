"""The text completion request: one prompt, as text.

Under a model id that retrieves the prompt is a question, as a lone user turn of a chat is. Under a
plain id it is the model's input as it stands, without a chat template: clients of this endpoint
that bring their own passages bring a ready prompt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

from chunkcache.protocol import AnswerRequest, Message
from chunkcache.server.errors import UNSUPPORTED
from chunkcache.server.shapes.body import stated
from chunkcache.server.shapes.generation import GenerationRequest, Neutral

if TYPE_CHECKING:
    from chunkcache.server.model_names import ChatModel

_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1},
    ]
}


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`. A null stands for the default."""

    NEUTRAL: ClassVar[Neutral] = {
        **GenerationRequest.NEUTRAL,
        "echo": (False,),
        "suffix": ("",),
        "best_of": (1,),
        "logprobs": (),
    }

    prompt: Annotated[str, Field(min_length=1), WithJsonSchema(_PROMPT_SCHEMA)]

    @field_validator("prompt", mode="before")
    @classmethod
    def _one_text(cls, prompt: Any) -> Any:
        if not isinstance(prompt, list):
            return prompt
        if any(isinstance(part, int | list) for part in prompt):
            raise PydanticCustomError(
                UNSUPPORTED,
                "token ids are not supported. Hint: send text; lm-eval does with "
                "tokenized_requests=False.",
            )
        if len(prompt) != 1:
            raise stated(
                f"prompt: got {len(prompt)} prompts, must be one. Hint: a request for each"
            )
        return prompt[0]

    def to_answer_request(self, tenant: str, model: ChatModel) -> AnswerRequest:
        """The same wish in the service's terms. The tenant comes from the API key.

        Raises:
            InvalidRequest: it asks for passages from a model that never retrieves.
        """
        question = Message(role="user", content=self.prompt)
        asked = self._asked([question], self._sampling(self.max_tokens), tenant, model)
        if asked.layout == "plain" and self.documents is None:
            return asked.model_copy(update={"layout": "raw"})
        return asked
