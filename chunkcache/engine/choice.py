"""One choice of an answer while it is written: logits in, tokens and pieces of text out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import torch

from chunkcache.engine.outcome import Delta, Written
from chunkcache.engine.request import Pass, Request
from chunkcache.engine.sample import Drawn, Sampler, chances_of
from chunkcache.engine.text import TextStream
from chunkcache.errors import NotFinite

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from chunkcache.engine.decoder import DecoderModel
    from chunkcache.engine.outcome import TokenChances
    from chunkcache.engine.request import Passes
    from chunkcache.errors import ChunkCacheError
    from chunkcache.protocol import Sampling


class Matcher(Protocol):
    """Says which token may come next. One for each choice; used by the engine thread alone."""

    def allowed(self, vocab: int) -> torch.Tensor:
        """bool `[vocab]`, at least one of them true; an end-of-sequence token where it may end.

        Raises:
            InvalidRequest: this grammar has become too complex to follow.
        """
        ...

    def within(self, token: int, left: int) -> int:
        """The token, or one that leads to an end where it would leave no room for one: after it
        come `left` at most. `was_closed` says whether that has happened.
        """
        ...

    def accept(self, token: int) -> bool:
        """The token comes next. False: nothing can follow it."""
        ...

    @property
    def was_closed(self) -> bool:
        """Whether the answer was led to its end because its tokens were over."""
        ...


class Choice:
    """Draws the tokens of one choice, makes text of them and knows when to end.

    `send` is given every piece of text. With `keep_logits` it keeps what each token was drawn from.
    From logits that are no finite numbers comes no answer; without `judges_logits` whoever asked
    looks at them himself.
    """

    def __init__(
        self,
        index: int,
        sampling: Sampling,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        matcher: Matcher | None,
        keep_logits: bool,
        judges_logits: bool,
        send: Callable[[Delta], None],
    ) -> None:
        self.index = index
        self.step_logits: list[torch.Tensor] = []
        self.written: Written | None = None  # once it has ended
        self._sampling = sampling
        self._max_new_tokens = max_new_tokens
        self._matcher = matcher
        self._keep_logits = keep_logits
        self._judges_logits = judges_logits
        self._send = send
        self._sampler = Sampler(sampling, prompt_ids, index=index)
        self._ids: list[int] = []
        self._chances: list[TokenChances] = []
        self._sent_chances = 0

    def passes(self, request: Request, model: DecoderModel, logits: torch.Tensor) -> Passes:
        """A token a pass at the end of the request's sequence, from the first one's logits on."""
        text = TextStream(model.tokenizer, self._sampling.stop)
        if model.runs_ahead and not self._reads_at_once:
            yield from self._passes_ahead(request, model, text, logits)
            return
        while (token := self._take(request, model, text, logits)) is not None:
            request.token_ids.append(token)
            answered = yield Pass(np.array([len(request.token_ids) - 1], dtype=np.int64))
            if request.exact_tokens == len(request.token_ids) - 1:
                request.exact_tokens += 1  # only now has the row of that token been written
            assert answered is not None
            logits = answered

    @property
    def _reads_at_once(self) -> bool:
        """Whether what comes next depends on more than logits: a grammar, or what is kept."""
        return self._matcher is not None or self._keep_logits or self._sampling.logprobs is not None

    def _passes_ahead(
        self, request: Request, model: DecoderModel, text: TextStream, logits: torch.Tensor
    ) -> Passes:
        """The same tokens, each read when the row it is of has been queued already.

        The device then never waits for the host. Behind a token that ends the answer, one row has
        been run in vain.
        """
        drawn = self._sampler.pick(logits, self._allowed(model, logits, 0))
        while True:
            following: Drawn | None = None
            if len(self._ids) + 1 < self._max_new_tokens:
                where = np.array([len(request.token_ids)], dtype=np.int64)
                answered = yield Pass(where, token_ids=drawn.there.view(1))
                assert answered is not None
                allowed = self._allowed(model, answered, len(self._ids) + 1)
                following = self._sampler.pick(answered, allowed)
            token = self._told(model, text, self._read(request, drawn))
            if token is None:
                return
            assert following is not None
            request.token_ids.append(token)
            if request.exact_tokens == len(request.token_ids) - 1:
                request.exact_tokens += 1
            drawn = following

    def _take(
        self, request: Request, model: DecoderModel, text: TextStream, logits: torch.Tensor
    ) -> int | None:
        """Draw a token and send its text. None: it was the last one, its row need not run."""
        if self._keep_logits:
            self.step_logits.append(logits.cpu())
        drawn = self._sampler.pick(logits, self._allowed(model, logits, len(self._ids)))
        return self._told(model, text, self._read(request, drawn), logits)

    def _read(self, request: Request, drawn: Drawn) -> int:
        """The token; what its request computed is shared with nobody unless it is sound."""
        token, is_sound = drawn.read()
        request.gives_prefix = request.gives_prefix and is_sound
        if not is_sound and self._judges_logits:
            raise NotFinite.of("logits")
        request.has_drawn = True
        return token

    def _told(
        self, model: DecoderModel, text: TextStream, token: int, logits: torch.Tensor | None = None
    ) -> int | None:
        """The next token is known: send its text. None: it was the last one."""
        goes_on, ended = True, "stop"
        if self._matcher is not None:
            drawn = token
            token = self._matcher.within(drawn, self._max_new_tokens - len(self._ids) - 1)
            self._sampler.written_instead(drawn, token)
            goes_on = self._matcher.accept(token)
            ended = "length" if self._matcher.was_closed else "stop"
        self._ids.append(token)
        if token in model.eos_ids and not self._sampling.ignore_eos:
            self._finish(text, ended)
            return None
        if self._sampling.logprobs is not None and logits is not None:
            self._chances.append(chances_of(logits, token, self._sampling.logprobs))
        if delta := text.push(token):
            self._deliver(delta)
        if text.stopped or not goes_on:
            self._finish(text, ended)
        elif len(self._ids) >= self._max_new_tokens:
            self._finish(text, "length")
        return None if self.written else token

    def _allowed(
        self, model: DecoderModel, logits: torch.Tensor, count: int
    ) -> torch.Tensor | None:
        """Which tokens may come behind `count` others."""
        if self._matcher is not None:
            return self._matcher.allowed(len(logits))
        if count >= self._sampling.min_tokens:
            return None
        allowed = torch.ones(len(logits), dtype=torch.bool, device=logits.device)
        for end in model.eos_ids:
            allowed[end] = False  # a list of them would have to be sent
        return allowed

    def _deliver(self, text: str) -> None:
        new = tuple(self._chances[self._sent_chances :])
        self._sent_chances += len(new)
        self._send(Delta(text, len(self._ids), self.index, new))

    def _finish(self, text: TextStream, reason: str) -> None:
        delta = text.finish()
        if delta or self._sent_chances < len(self._chances):
            self._deliver(delta)
        if text.stopped:
            reason = "stop"
        self.written = Written(text.text, tuple(self._ids), reason, tuple(self._chances))


class Branch(Request):
    """Another choice of a generation: it goes on from the prompt's last row, in pages of its own.

    `on_end` is called once its choice is written.
    """

    is_part: ClassVar[bool] = True

    def __init__(self, trunk: Request, choice: Choice, on_end: Callable[[], None]) -> None:
        super().__init__(
            trunk.token_ids,
            max_new_tokens=trunk.max_tokens - len(trunk.token_ids),
            salt=trunk.salt,
            takes_prefix=False,
            gives_prefix=False,
        )
        self.trunk: Request = trunk
        self.is_decoding = True
        self.logits: torch.Tensor | None = None  # of the prompt's last row, once they are there
        self._choice = choice
        self._on_end = on_end

    def plan(self, model: DecoderModel, prefix_tokens: int) -> int:
        """The rows of its own tokens; the trunk has planned the others."""
        return self.max_tokens - len(self.token_ids)

    def passes(self, model: DecoderModel) -> Passes:
        """A token a pass."""
        assert self.logits is not None
        yield from self._choice.passes(self, model, self.logits)
        self._on_end()

    def is_wanted(self) -> bool:
        """Whether anyone still waits for the trunk."""
        return self.trunk.is_wanted()

    def fail(self, error: ChunkCacheError) -> None:
        """The trunk fails for all."""
        self.trunk.fail(error)
