"""The ids that clients may name: the decoder's, each also with `:plain`, and the embedder's.

Under `ID:plain` nothing is retrieved: for clients that bring their own passages, and for requests
that are no questions (a title for the conversation, say). Clients choose by the id because that
is the one thing that every client lets its user set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from chunkcache.config import PLAIN
from chunkcache.errors import ConfigError, InvalidRequest, NotFound

if TYPE_CHECKING:
    from chunkcache.protocol import ChunkCacheOptions
    from chunkcache.server.backend import Service

_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class ChatModel:
    """The decoder as it was asked for: answers carry that id."""

    id: str
    retrieves: bool

    def require_fit(self, options: ChunkCacheOptions) -> None:
        """Raises InvalidRequest: retrieval is asked of a model id that never retrieves."""
        if self.retrieves:
            return
        for name in ("vector_store_id", "top_k"):
            if value := getattr(options, name):
                retrieving = self.id.removesuffix(PLAIN)
                raise InvalidRequest.of(
                    f"chunkcache.{name}", value, f"left out with the model {self.id!r}",
                    f"the model {retrieving!r} retrieves",
                )  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Every id there is.

    Args:
        decoder: ids of the decoder, listed; the first is its own.
        embedder: the id of the embedder.
        unlisted: what the settings call the decoder and the embedder (a folder, say). They are
            taken, because people give clients what they gave the server, and not listed, because
            the folders of this machine are nobody's business.
    """

    decoder: tuple[str, ...]
    embedder: str
    unlisted: tuple[str, str]

    @classmethod
    def of(cls, service: Service) -> ModelNames:
        """The names of a service.

        Raises:
            ConfigError: one name stands for two models.
        """
        settings = service.settings
        unlisted = (settings.model.name, settings.retrieval.embedder)
        names = cls(service.model_ids, service.embedder_id, unlisted)
        if names.embedder in names.decoder:
            raise ConfigError(
                f"model.alias: {names.embedder!r} is the id of the embedder. Hint: choose another."
            )
        return names

    @property
    def chat_ids(self) -> list[str]:
        """All listed ids that answer: those that retrieve, then those that do not."""
        return [*self.decoder, *(name + PLAIN for name in self.decoder)]

    def chat(self, asked: str | None) -> ChatModel:
        """The decoder by any of its ids; None: by its own.

        Raises:
            NotFound: no such model, or one that does not answer; with OpenAI's code
                `model_not_found`.
        """
        if asked is None:
            return ChatModel(self.decoder[0], retrieves=True)
        for retrieves, name in ((True, asked), (False, asked.removesuffix(PLAIN))):
            if name in self.decoder or name == self.unlisted[0]:
                return ChatModel(asked, retrieves)
        ids = _quoted(self.chat_ids)
        if asked in (self.embedder, self.unlisted[1]):
            raise _not_found(f"The model '{asked}' embeds text and does not chat; {ids} do.")
        raise self.unknown(asked)

    def require_embedder(self, asked: str | None) -> None:
        """Raises NotFound unless it is the embedder, or none."""
        if asked is None or asked in (self.embedder, self.unlisted[1]):
            return
        if asked in self.chat_ids or asked == self.unlisted[0]:
            raise _not_found(
                f"The model '{asked}' chats and does not embed; '{self.embedder}' does."
            )
        raise self.unknown(asked)

    def unknown(self, asked: str) -> NotFound:
        """The error for an id that nothing here has."""
        ids = _quoted([*self.chat_ids, self.embedder])
        return _not_found(f"The model '{asked[:_SHOWN_CHARS]}' does not exist; there are {ids}.")


def _quoted(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _not_found(message: str) -> NotFound:
    error = NotFound(message, param="model")
    error.code = "model_not_found"
    return error
