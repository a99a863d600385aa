"""Runs flows over httpx, in the two manners there are; the only place that sends or waits."""

from __future__ import annotations

import asyncio
import itertools
import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import httpx

from ..errors import ChunkCacheError
from .decoder import AnswerDecoder
from .failures import Failure, RetryRule, json_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from .calls import Call
    from .flows import Flow
    from .results import StreamEvent

_T = TypeVar("_T")


class Driver:
    """Sends what flows ask for, waits, and tries again where that helps."""

    def __init__(self, http: httpx.Client, rule: RetryRule) -> None:
        self._http = http
        self._rule = rule

    @property
    def base_url(self) -> str:
        """Where requests go."""
        return str(self._http.base_url)

    def close(self) -> None:
        """Close the connections. A second call does nothing."""
        self._http.close()

    def run(self, flow: Flow[_T]) -> _T:
        """The result of a flow. What goes wrong with its requests is thrown into it first."""
        step = partial(next, flow)
        while True:
            try:
                call = step()
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # what a Flow[_T] returns
            try:
                step = partial(flow.send, json_of(self._exchange(call)))
            except (ChunkCacheError, OSError) as error:
                step = partial(flow.throw, error)

    def stream(self, call: Call) -> Generator[StreamEvent, None, None]:
        """The events of one answer. The request is sent when the first is asked for."""
        decoder = AnswerDecoder()
        response = self._exchange(call, stream=True)
        try:
            for data in response.iter_bytes():
                yield from decoder.feed(data)
        except httpx.RequestError as error:
            raise Failure.of_transport(error).error from error
        finally:
            response.close()
        decoder.close()

    def _exchange(self, call: Call, *, stream: bool = False) -> httpx.Response:
        """A response with a result, read unless `stream`; retried as the rule says."""
        for attempt in itertools.count():
            try:
                with call.arguments() as arguments:
                    request = self._http.build_request(**arguments)
                    response = self._http.send(request, stream=stream)
                if call.has_result(response.status_code):
                    return response
                try:
                    response.read()
                finally:
                    response.close()
                failure = Failure.of_response(response)
            except httpx.RequestError as error:
                failure = Failure.of_transport(error)
            wait_s = self._rule.wait_s(failure, attempt, repeatable=call.repeatable)
            if wait_s is None:
                raise failure.error from failure.cause
            time.sleep(wait_s)
        raise AssertionError("counting does not end")


class AsyncDriver:
    """`Driver`, awaited."""

    def __init__(self, http: httpx.AsyncClient, rule: RetryRule) -> None:
        self._http = http
        self._rule = rule

    @property
    def base_url(self) -> str:
        """Where requests go."""
        return str(self._http.base_url)

    async def close(self) -> None:
        """Close the connections. A second call does nothing."""
        await self._http.aclose()

    async def run(self, flow: Flow[_T]) -> _T:
        """The result of a flow. What goes wrong with its requests is thrown into it first."""
        step = partial(next, flow)
        while True:
            try:
                call = step()
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # what a Flow[_T] returns
            try:
                step = partial(flow.send, json_of(await self._exchange(call)))
            except (ChunkCacheError, OSError) as error:
                step = partial(flow.throw, error)

    async def stream(self, call: Call) -> AsyncGenerator[StreamEvent, None]:
        """The events of one answer. The request is sent when the first is asked for."""
        decoder = AnswerDecoder()
        response = await self._exchange(call, stream=True)
        try:
            async for data in response.aiter_bytes():
                for event in decoder.feed(data):
                    yield event
        except httpx.RequestError as error:
            raise Failure.of_transport(error).error from error
        finally:
            await response.aclose()
        decoder.close()

    async def _exchange(self, call: Call, *, stream: bool = False) -> httpx.Response:
        """A response with a result, read unless `stream`; retried as the rule says."""
        for attempt in itertools.count():
            try:
                with call.arguments() as arguments:
                    request = self._http.build_request(**arguments)
                    response = await self._http.send(request, stream=stream)
                if call.has_result(response.status_code):
                    return response
                try:
                    await response.aread()
                finally:
                    await response.aclose()
                failure = Failure.of_response(response)
            except httpx.RequestError as error:
                failure = Failure.of_transport(error)
            wait_s = self._rule.wait_s(failure, attempt, repeatable=call.repeatable)
            if wait_s is None:
                raise failure.error from failure.cause
            await asyncio.sleep(wait_s)
        raise AssertionError("counting does not end")
