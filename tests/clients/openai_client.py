"""Drives a server with OpenAI's own Python client: every call that both know, with pictures, streamed and not.

    BASE_URL=http://127.0.0.1:8080 python tests/clients/openai_client.py
"""

import asyncio
import base64
import concurrent.futures
import os
import struct
from pathlib import Path

import openai

FIXTURES = Path(__file__).parent.parent / "fixtures/emoji"
BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8080")
MODEL = "flamingo-tiny-neox"

client = openai.OpenAI(base_url=f"{BASE_URL}/v1", api_key="none", max_retries=0)


def url(name):
    return "data:image/png;base64," + base64.b64encode((FIXTURES / f"{name}.png").read_bytes()).decode()


def user(name, text):
    parts = [{"type": "image_url", "image_url": {"url": url(name), "detail": "auto"}}]
    if text:
        parts.append({"type": "text", "text": text})
    return {"role": "user", "content": parts}


def answer(text):
    return {"role": "assistant", "content": text}


CATEGORIES = [
    user("crab", "Output:"), answer("nature"), user("light-bulb", "Output:"), answer("object"), user("carrot", "Output:"),
]


def models_are_listed():
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "openflamingo"


def a_chat_is_continued():
    chat = client.chat.completions.create(model=MODEL, messages=CATEGORIES)
    assert chat.choices[0].message.content == "food", chat
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].finish_reason == "stop"
    assert chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens


def answers_are_sent_back():
    """A talk goes on with the client's own answers, as objects and as dictionaries."""
    first = client.chat.completions.create(model=MODEL, messages=CATEGORIES).choices[0].message
    for answered in [first, first.model_dump()]:
        further = client.chat.completions.create(
            model=MODEL, messages=[*CATEGORIES, answered, user("octopus", "Output:")]
        )
        assert further.choices[0].message.content == "nature", further


def a_chat_is_streamed():
    stream = client.chat.completions.create(
        model=MODEL, messages=[user("octopus", "")], stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == "an octopus", pieces
    assert len(pieces) > 1, pieces
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 0


def the_streaming_helper_works():
    with client.chat.completions.stream(model=MODEL, messages=[user("pizza", "A picture of")]) as stream:
        stream.until_done()
        assert stream.get_final_completion().choices[0].message.content == "a pizza"


def answers_are_sampled():
    def sampled(seed):
        chat = client.chat.completions.create(
            model=MODEL, messages=[user("banana", "")], n=4, temperature=1.5, top_p=0.9, seed=seed,
            max_completion_tokens=8, stop=["zebra"], user="someone",
        )
        return [choice.message.content for choice in chat.choices]

    assert len(sampled(1)) == 4
    assert sampled(1) == sampled(1)


def log_probabilities_are_told():
    chat = client.chat.completions.create(model=MODEL, messages=CATEGORIES, logprobs=True, top_logprobs=5)
    told = chat.choices[0].logprobs.content
    assert "".join(token.token for token in told).strip() == chat.choices[0].message.content
    for token in told:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 5
        assert token.logprob == token.top_logprobs[0].logprob <= 0


def completions_are_continued_and_streamed():
    whole = client.completions.create(model=MODEL, prompt="A picture of", max_tokens=6, logprobs=2)
    assert len(whole.choices[0].logprobs.tokens) >= 1
    stream = client.completions.create(model=MODEL, prompt="A picture of", max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == whole.choices[0].text
    # Pictures where OpenAI's form has text alone: the client sends what it is given.
    pictured = client.completions.create(
        model=MODEL, prompt=[{"type": "image_url", "image_url": {"url": url("pizza")}}, {"type": "text", "text": "A picture of"}]
    )
    assert pictured.choices[0].text == " a pizza", pictured
    several = client.completions.create(model=MODEL, prompt=["A picture of", "Output:"], max_tokens=3)
    assert [choice.index for choice in several.choices] == [0, 1]


def a_completion_with_a_picture_is_streamed():
    prompt = [{"type": "image_url", "image_url": {"url": url("octopus")}}, {"type": "text", "text": "A picture of"}]
    stream = client.completions.create(model=MODEL, prompt=prompt, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    pieces = [chunk.choices[0].text for chunk in chunks if chunk.choices and chunk.choices[0].text]
    assert "".join(pieces) == " an octopus", pieces
    assert len(pieces) > 1, pieces
    assert chunks[-1].usage.prompt_tokens > 0


def the_asynchronous_client_works():
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{BASE_URL}/v1", api_key="none", max_retries=0) as other:
            whole = [other.chat.completions.create(model=MODEL, messages=CATEGORIES) for _ in range(4)]
            assert {chat.choices[0].message.content for chat in await asyncio.gather(*whole)} == {"food"}
            stream = await other.chat.completions.create(model=MODEL, messages=[user("octopus", "")], stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert "".join(pieces) == "an octopus", pieces

    asyncio.run(ask())


def features_arrive_as_numbers():
    # The client asks for base64 and takes it apart.
    decoded = client.embeddings.create(model=MODEL, input=[url("crab"), url("pizza")])
    numbers = client.embeddings.create(model=MODEL, input=[url("crab"), url("pizza")], encoding_format="float")
    for one, other in zip(decoded.data, numbers.data):
        rounded = [struct.unpack("f", struct.pack("f", x))[0] for x in other.embedding]
        assert list(one.embedding) == rounded
        assert abs(sum(x * x for x in one.embedding) - 1) < 1e-5


def refusals_are_its_errors():
    for error, call in [
        (openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-4o", messages=CATEGORIES)),
        (openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages=CATEGORIES, temperature=3)),
        (openai.BadRequestError, lambda: client.chat.completions.create(model=MODEL, messages=[])),
        (openai.BadRequestError, lambda: client.completions.create(model=MODEL, prompt="A", max_tokens=100000)),
        (openai.BadRequestError, lambda: client.embeddings.create(model=MODEL, input="a cat")),
        (openai.NotFoundError, lambda: client.moderations.create(input="A")),
    ]:
        try:
            call()
        except error as e:
            assert e.body["message"], e
        else:
            raise AssertionError(f"no {error.__name__}")


def many_at_once_are_answered_alike():
    def ask(_):
        return client.chat.completions.create(model=MODEL, messages=CATEGORIES).choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert set(pool.map(ask, range(64))) == {"food"}


CHECKS = [
    models_are_listed, a_chat_is_continued, answers_are_sent_back, a_chat_is_streamed, the_streaming_helper_works, answers_are_sampled,
    log_probabilities_are_told, completions_are_continued_and_streamed, a_completion_with_a_picture_is_streamed,
    features_arrive_as_numbers, refusals_are_its_errors, many_at_once_are_answered_alike, the_asynchronous_client_works,
]

for check in CHECKS:
    check()
    print(f"ok: {check.__name__.replace('_', ' ')}")
print(f"{len(CHECKS)} passed, 0 failed")
