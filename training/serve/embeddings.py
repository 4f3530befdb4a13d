"""Routes that answer with features: the WenLan API that was closed in 2023, OpenAI's, infinity's and Jina's forms.

    POST /image_query              multipart file `image`     -> {"emb_dim", "emb_type": "image", "embedding"}
    GET  /text_query?text=         the same, "text"
    POST /v1/embeddings            OpenAI: input a text or a list; infinity: modality text|image, pictures as data URIs,
                                   at most 32; Jina: input [{"text": ..}, {"image": ..}], embedding_type
    GET  /v1/models, /models       the one model

Features are unit rows, float32; base64 is of their bytes, little-endian. A text longer than the towers read is cut as
in training. `dimensions` other than D is refused: these features were not trained to be cut.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

import numpy as np
import pydantic_core
from fastapi import APIRouter, File, Query, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from training.serve.inputs import picture_of
from training.serve.refusals import Refused, bad_request
from training.serve.service import Service
from training.serve.towers import Features


class Embedding(BaseModel):
    """Answer of the released API."""

    emb_dim: int
    emb_type: Literal["image", "text"]
    embedding: list[float]


class Item(BaseModel):
    """One input in Jina's form: a text or a picture."""

    model_config = ConfigDict(extra="forbid")
    text: str | None = None
    image: str | None = Field(None, description="data URI, or base64 of a picture's file")


class EmbeddingsRequest(BaseModel):
    """OpenAI's request, with infinity's and Jina's additions. Fields that are not known are ignored, as OpenAI does."""

    model_config = ConfigDict(extra="ignore")
    input: str | list[str | Item] | list[int] | list[list[int]] = Field(description="texts, or pictures as data URIs")
    model: str = ""
    modality: Literal["text", "image"] = "text"
    encoding_format: Literal["float", "base64"] | None = None
    embedding_type: Literal["float", "base64"] | None = Field(None, description="Jina's word for encoding_format")
    dimensions: int | None = None
    user: str | None = None


class Row(BaseModel):
    """One feature."""

    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str
    index: int


class Usage(BaseModel):
    """Tokens of all texts, their marks included; pictures have none."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """OpenAI's answer."""

    object: Literal["list"] = "list"
    data: list[Row]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """The model, as /v1/models lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "wenlan"
    recipe: str
    dimensions: int
    capabilities: list[str] = ["embed", "image_embed"]


class ModelList(BaseModel):
    """Answer of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def json_of(value: Any) -> Response:
    """An answer of plain values; of thousands of numbers FastAPI's own way takes milliseconds."""
    return Response(pydantic_core.to_json(value), media_type="application/json")


def routes(service: Service) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/image_query", response_model=Embedding)
    async def image_query(image: Annotated[UploadFile, File()]) -> Response:
        """Feature of a picture (the released WenLan API)."""
        embedded = await service.pictures([await image.read()], param="image")
        return _released("image", embedded.first)

    @router.get("/text_query", response_model=Embedding)
    async def text_query(text: Annotated[str, Query()]) -> Response:
        """Feature of a text (the released WenLan API)."""
        return _released("text", (await service.texts([text], param="text")).first)

    @router.post("/v1/embeddings", response_model=EmbeddingsAnswer)
    @router.post("/embeddings", include_in_schema=False)
    async def embeddings(request: EmbeddingsRequest) -> Response:
        """Features of texts or pictures, as OpenAI, infinity and Jina ask for them."""
        return await _embeddings(service, request)

    @router.get("/v1/models", response_model=ModelList)
    @router.get("/models", response_model=ModelList, include_in_schema=False)
    async def models() -> Response:
        """The model that answers here."""
        return json_of(ModelList(data=[_card(service)]).model_dump())

    @router.get("/v1/models/{model}", response_model=ModelCard)
    async def model(model: str) -> Response:
        """The model of this name."""
        _check_model(service, model)
        return json_of(_card(service).model_dump())

    return router


def _card(service: Service) -> ModelCard:
    recipe = service.checkpoint.config.recipe
    return ModelCard(id=service.name, created=int(service.started), recipe=recipe, dimensions=service.width)


def _check_model(service: Service, name: str) -> None:
    if name != service.name:
        text = f"there is no model {name[:100]!r} here; the one that answers is {service.name!r}"
        raise Refused(404, "model_not_found", text, param="model")


def _released(kind: Literal["image", "text"], row_D: Features) -> Response:
    return json_of({"emb_dim": len(row_D), "emb_type": kind, "embedding": row_D.tolist()})


async def _embeddings(service: Service, request: EmbeddingsRequest) -> Response:
    if request.model:
        _check_model(service, request.model)
    if request.dimensions not in (None, service.width):
        text = (
            f"the features have {service.width} numbers and were not trained to be cut; "
            f"leave dimensions out, or give {service.width}"
        )
        raise bad_request("dimensions", text, "dimensions")
    texts, pictures = _inputs(request)
    rows_ND = np.zeros((len(texts) + len(pictures), service.width), np.float32)
    tokens = 0
    if texts:
        embedded = await service.texts(list(texts.values()))
        rows_ND[list(texts)], tokens = embedded.rows_ND, embedded.tokens
    if pictures:
        rows_ND[list(pictures)] = (await service.pictures(list(pictures.values()))).rows_ND
    wanted = request.encoding_format or request.embedding_type or "float"
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(row_D, wanted)}
        for index, row_D in enumerate(rows_ND)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_of({"object": "list", "data": data, "model": service.name, "usage": usage})


def _inputs(request: EmbeddingsRequest) -> tuple[dict[int, str], dict[int, bytes]]:
    """Texts and pictures of a request, by their place in it. Raises Refused."""
    listed = [request.input] if isinstance(request.input, str) else request.input
    if not listed:
        raise bad_request("empty", "no input", "input")
    texts: dict[int, str] = {}
    pictures: dict[int, bytes] = {}
    for number, one in enumerate(listed):
        param = f"input[{number}]" if len(listed) > 1 else "input"
        if isinstance(one, (int, list)):
            raise bad_request("token_ids", "ids are those of another tokenizer; send texts", param)
        if isinstance(one, str):
            if request.modality == "image":
                pictures[number] = picture_of(one, param)
            else:
                texts[number] = one
        elif (one.text is None) == (one.image is None):
            raise bad_request("input", 'an input is {"text": ..} or {"image": ..}', param)
        elif one.text is not None:
            texts[number] = one.text
        else:
            assert one.image is not None
            pictures[number] = picture_of(one.image, param)
    return texts, pictures


def _encoded(row_D: Features, wanted: str) -> list[float] | str:
    if wanted == "base64":
        return base64.b64encode(row_D.astype("<f4").tobytes()).decode()
    numbers: list[float] = row_D.tolist()
    return numbers
