"""The specification of a dataset build: `load(path)` returns a BuildSpec, or raises one SpecError with every fault.

A spec is a YAML file. This module defines the options that every build has. Sources, filters and detectors are plug-ins
of `pipeline`, whose options this leaf cannot know: a `PluginRef` carries them as written, and the pipeline checks them
against the plug-in's own model before anything runs (`pipeline.plugins.check`).

Relative paths in a spec are relative to the spec file, so that a build does not depend on the folder it is started in.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from data_specs.errors import SpecError as SpecError
from data_specs.names import NAME as NAME
from data_specs.names import SourceKind
from data_specs.shard import canonical_json
from data_specs.spec_file import OptionLines, describe, one_line, read


class Spec(BaseModel):
    """Base of all parts of a spec: frozen; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PluginRef(Spec):
    """A plug-in's name and options: `{name: text_length, min_chars: 2}`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options as written, without `name`."""
        return dict(self.__pydantic_extra__ or {})


Share = Annotated[float, Field(ge=0, le=1)]


class DropShares(Spec):
    """Largest share of its input that each stage may drop, 0 to 1; a build that exceeds it fails its gate.

    The defaults admit what was observed on ordinary web sources, and stop a build whose stage drops nearly everything.
    """

    crawl: Share = Field(0.9, description="pages that could not be fetched or are not HTML")
    extract: Share = Field(0.95, description="icons, spacers, images without text")
    admit: Share = Field(0.9, description="texts dropped by the text filters, opt-outs, candidates above the caps")
    fetch: Share = Field(0.6, description="old URL lists lose a third or more")
    measure: Share = Field(0.2, description="files that are not pictures")
    filter: Share = Field(0.9, description="pictures dropped by the image filters")
    dedup: Share = Field(0.8, description="near copies, and pairs above the caps")
    curate: Share = Field(
        0.9, description="judges: models on pixels, watermarks, pair scores, semantic copies, balance"
    )


if TYPE_CHECKING:

    class SourceDropShares(DropShares):
        """For the type checker; the model is made below."""

else:  # the fields of DropShares, each optional: created from them, so that there is one list
    SourceDropShares = create_model(
        "SourceDropShares",
        __base__=Spec,
        __doc__="DropShares for one source; a stage that is left out takes the share of the build.",
        **dict.fromkeys(DropShares.model_fields, (Share | None, None)),
    )


class SourceRef(Spec):
    """A source: its kind (a plug-in), its name in this dataset, the kind of its pages, and the plug-in's options."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: str = Field(description="name of the plug-in; `wenlan-data plugins sources` lists them")
    name: str = Field(pattern=NAME, description="name of the source, unique in the dataset")
    source_kind: SourceKind = Field(description="kind of its pages; training chooses texts by it")
    max_drop: SourceDropShares = Field(
        SourceDropShares(), description="like publish.max_drop, for this source only, e.g. {fetch: 0.9}"
    )
    vanished: Literal["keep", "drop"] = Field(
        "keep", description="whether to keep samples whose page or picture answers 404 or 410 in a later build"
    )
    filters: dict[str, dict[str, Any]] = Field(
        {},
        description="options of the build's text and image filters to change for this source: "
        "{text_length: {min_chars: 1}}",
    )

    @property
    def options(self) -> dict[str, Any]:
        """The options as written, without kind, name, source_kind, max_drop, vanished and filters."""
        return dict(self.__pydantic_extra__ or {})


HostName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
"""A host as canonical URLs have it: lower case, punycode, without a port."""


class HostPace(Spec):
    """The pace of one host, as its owner allows: a value that is left out is that of the build."""

    delay_s: float | None = Field(None, ge=0, description="seconds between two requests, over the whole cluster")
    connections: int | None = Field(None, gt=0, description="simultaneous connections, per worker")


class Egress(Spec):
    """Limits of the requests that crawl and fetch send."""

    allow: tuple[str, ...] = Field(
        (), description="loopback addresses (host:port) that may be requested; all others are refused"
    )
    network: Literal["allowed", "never"] = Field(
        "allowed", description="never: no requests to sites; pictures come from WARC files, sources and STORE only"
    )
    max_page_bytes: int = Field(5_000_000, gt=0, description="largest page in bytes; larger ones are dropped")
    max_image_bytes: int = Field(20_000_000, gt=0, description="largest image in bytes; larger ones are dropped")
    max_redirects: int = Field(5, ge=0, description="most redirects to follow per request")
    timeout_s: float = Field(20.0, gt=0, description="seconds per request, from start to end")
    delay_s: float = Field(
        1.0,
        ge=0,
        description="seconds between two requests to one host, over the whole cluster; robots.txt may ask for more",
    )
    connections_per_host: int = Field(1, gt=0, description="simultaneous connections to one host, per worker")
    hosts: dict[HostName, HostPace] = Field(
        {},
        description="pace of single hosts and the hosts below them, as their owners allow: "
        "{img.example.com: {delay_s: 0.02, connections: 8}}",
    )
    obey_robots: bool = Field(True, description="obey robots.txt and the reservations in tdmrep.json")

    def delay_of(self, host: str) -> float:
        """Seconds between two requests to a host, with or without its port."""
        own = self._pace_of(host).delay_s
        return self.delay_s if own is None else own

    def connections_of(self, host: str) -> int:
        """Simultaneous connections to a host, per worker."""
        return self._pace_of(host).connections or self.connections_per_host

    def _pace_of(self, host: str) -> HostPace:
        """The pace of the longest name in `hosts` that a host has or is below."""
        name = host.rpartition("@")[2].partition(":")[0].lower()
        while name and name not in self.hosts:
            name = name.partition(".")[2]
        return self.hosts.get(name) or HostPace()


class Img2dataset(Spec):
    """Options of `img2dataset.download`, by its own names; `fetch` and `egress` set the others."""

    processes_count: int = Field(1, gt=0, description="processes that download one partition")


class Fetch(Spec):
    """Options of fetching images."""

    engine: Literal["wenlan", "img2dataset"] = Field(
        "wenlan", description="downloader: wenlan's own, or img2dataset under the same rules"
    )
    img2dataset: Img2dataset = Field(Img2dataset(), description="options of the engine img2dataset")
    images_per_partition: int = Field(
        10_000, gt=0, description="most images per partition, on average; a small build gets smaller ones"
    )
    threads: int = Field(16, gt=0, description="simultaneous requests per worker")
    max_wait_s: float = Field(
        60,
        ge=0,
        description="seconds for which a worker waits for a host that fails for the time being, at the end of a "
        "partition and once in a build; 0: its images are left to the next build",
    )
    recheck_every: int = Field(
        10,
        ge=0,
        description="builds in which each known page and picture of the dataset is requested again once, since its "
        "owner may have opted out later; 0: never, but for sites that robots.txt closes",
    )
    max_pixels: int = Field(100_000_000, gt=0, description="most pixels; checked in the header, before decoding")


class Admit(Spec):
    """Limits applied before any image is fetched, in addition to the text filters."""

    max_candidates_per_image: int = Field(
        8, gt=0, description="candidates kept per image URL: texts from different pages"
    )
    max_share_per_host: float = Field(
        1.0,
        gt=0,
        le=1,
        description="largest share of all images that one host may have; fetching takes as long as the largest host",
    )
    max_text_rank: int | None = Field(
        None, ge=0, description="most better texts that may have been removed before the remaining one; 0 = none"
    )


class Dedup(Spec):
    """Rules by which two images or texts count as the same, and limits on pairs that share a text or image."""

    across: Literal["all"] | tuple[str, ...] = Field(
        (),
        description="names of other datasets of STORE to deduplicate against, or all",
    )

    image_distance: int = Field(
        4, ge=0, le=16, description="most bits of 64 that may differ between two perceptual hashes"
    )
    image_signature: float = Field(0.07, ge=0, le=1, description="largest difference of brightness and colour, 0 to 1")
    image_turned: bool = Field(
        False, description="also match copies that are mirrored or turned by 90, 180 or 270 degrees"
    )
    text_similarity: float = Field(
        0.7, gt=0, le=1, description="Jaccard similarity of character shingles; at 0.7 about one in ten may differ"
    )
    max_pairs_per_text: int = Field(
        10, gt=0, description="most pairs that share one text; Wukong drops a text that occurs more often"
    )
    placeholder_texts: int = Field(
        100, ge=0, description="an image with more different primary texts than this is a placeholder; 0 = never"
    )
    max_texts: int = Field(32, gt=0, description="most texts of a sample, including those of its duplicates")
    merge_texts: bool = Field(True, description="add the texts of its duplicates to each leader")


class Balance(Spec):
    """Concept balance (MetaCLIP, arXiv 2309.16671): keeps a share of the pairs whose words are all frequent."""

    entries: str = Field("", description="file of words, one per line; by default the words of jieba's dictionary")
    min_letters: int = Field(2, ge=1, description="entries with fewer characters are ignored")
    threshold: int = Field(
        0,
        ge=0,
        description="an entry in more texts than this is kept with probability threshold / texts; 0: set by tail_share",
    )
    tail_share: float = Field(
        0.06, gt=0, lt=1, description="share of all matches that fall on entries below the threshold"
    )
    unmatched: Literal["keep", "drop"] = Field("keep", description="what to do with pairs whose text contains no entry")


class Watermark(Spec):
    """Drops the pictures that carry the watermark of their host, which is found in many pictures of one size."""

    max_correlation: float = Field(
        0.3,
        gt=0,
        lt=1,
        description="drop a picture whose gradients correlate more than this with its host's mark",
    )
    min_pictures: int = Field(20, ge=10, description="fewest equal-sized pictures of a host to look for a mark in")
    sample: int = Field(100, ge=10, le=500, description="most pictures of a host to look for a mark in")

    @model_validator(mode="after")
    def _sample_is_large_enough(self) -> Watermark:
        if self.sample < self.min_pictures:
            raise ValueError(f"sample: {self.sample} pictures are fewer than min_pictures, {self.min_pictures}")
        return self


class PairScore(Spec):
    """Scores every pair: the cosine of its picture's and its primary text's features, by two towers; without towers
    the chance that the text says what the picture shows, estimated from the words of the pair alone.

    It drops nothing by itself: the filter `pair_score` does that.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"examples": [{}, {"image": "m.image.onnx", "text": "m.text.onnx"}]},
    )

    image: str = Field(
        "",
        description="image tower, an .onnx file: from wenlan-train export --to onnx, or another one with a vocabulary",
    )
    text: str = Field("", description="text tower, an .onnx file of the same model")
    vocabulary: str = Field("", description="for towers that are not wenlan's: a BERT vocab.txt, or a tokenizer.json")
    max_tokens: int = Field(52, ge=3, le=4096, description="most tokens of a text with its marks; 52 is Chinese-CLIP's")
    side: int = Field(224, ge=16, le=2048, description="side in pixels of the image tower's square input")
    resize: Literal["bicubic", "bilinear"] = Field("bicubic", description="interpolation to that square")
    mean: tuple[float, float, float] = Field(
        (0.48145466, 0.4578275, 0.40821073), description="mean of R, G and B (0 to 1) to subtract; default: CLIP's"
    )
    std: tuple[float, float, float] = Field(
        (0.26862954, 0.26130258, 0.27577711), description="deviation of R, G and B to divide by; default: CLIP's"
    )
    threads: int = Field(1, ge=1, description="threads of a session, and CPUs per worker")
    num_gpus: float = Field(0, ge=0, description="GPUs per process that runs models, or a fraction of one; 0: CPUs")

    @model_validator(mode="after")
    def _only_of_others(self) -> PairScore:
        fields = type(self).model_fields
        if bool(self.image) != bool(self.text):
            missing, given = ("text", "image") if self.image else ("image", "text")
            raise ValueError(f"{missing}: missing; {given} names one of two towers")
        if not self.image and (told := [name for name in fields if getattr(self, name) != fields[name].default]):
            raise ValueError(f"{told[0]}: an option of towers; set image and text too")
        told = [n for n in ("max_tokens", "side", "resize", "mean", "std") if getattr(self, n) != fields[n].default]
        if not self.vocabulary and told:
            raise ValueError(f"{told[0]}: stored in wenlan's own towers; for other towers set vocabulary too")
        if min(self.std) <= 0:
            raise ValueError("std: must be above 0")
        return self

    @property
    def by_words(self) -> bool:
        """True where no towers are named."""
        return not self.image


class SemanticDedup(Spec):
    """Semantic duplicates: images whose features (image tower of `pair_score`) nearly agree; keeps one of each group.

    By leaders, as near copies are: a pair is a duplicate if and only if its image lies within `distance` of that of a
    pair that was kept before it.
    """

    distance: float = Field(
        0.05, ge=0, le=1, description="cosine distance up to which two images are the same; depends on the tower"
    )
    keep: Literal["larger_image", "longer_text", "higher_score"] = Field(
        "larger_image", description="which pair to keep; ties keep the smaller id"
    )
    pairs_per_holder: int = Field(
        2_000_000,
        gt=0,
        description="leaders per process; more are spread over several processes, with the same result",
    )


class Regions(Spec):
    """The detectors that run on the images. Training uses the first one by default."""

    detectors: tuple[PluginRef, ...] = Field(
        (PluginRef(name="grid"),), description="detectors by name, with their options; `wenlan-data plugins` lists them"
    )
    max_boxes: int = Field(36, gt=0, description="most boxes per image, the best are kept")
    num_gpus: float = Field(0, ge=0, description="GPUs per process that runs models, or a fraction of one; 0: CPUs")


class Shards(Spec):
    """Options of packing samples."""

    samples_per_shard: int = Field(10_000, gt=0, description="most samples per tar")
    bytes_per_shard: int = Field(
        0,
        ge=0,
        description="most bytes of images per tar, as fetched; whichever limit comes first ends a shard. 0 = no limit",
    )
    dev_share: float = Field(
        0.01, ge=0, lt=0.5, description="share of images in the split dev, for stopping and tuning"
    )
    val_share: float = Field(0.01, ge=0, lt=0.5, description="share of images in the split val, for reporting")
    apart: Literal["images", "texts"] = Field(
        "images",
        description="what two splits never share: copies of an image; with texts also equal texts",
    )
    jpeg_quality: int = Field(92, ge=50, le=100, description="JPEG quality of re-encoded images")
    max_side: int = Field(
        0, ge=0, description="longest side in pixels; larger images and their boxes are scaled down. 0 = no limit"
    )
    reencode: Literal["never", "all"] = Field(
        "never",
        description="never: only images that are not plain JPEG or too large; all: every image, at jpeg_quality",
    )
    faces: Literal["keep", "blur"] = Field(
        "keep",
        description="blur: each face that the detector `faces` of regions.detectors finds becomes a mosaic, in what is "
        "stored and in whatever shows it; keep: pictures as they are",
    )


class Report(Spec):
    """Options of the quality report."""

    pictures: int = Field(96, ge=0, description="samples shown with their picture, kept and dropped in total; 0 = none")
    picture_side: int = Field(192, gt=0, description="longer side of a picture, in pixels")


class Publish(Spec):
    """Gates that must hold before a build is published as a dataset."""

    approve: Literal["auto", "manual"] = Field(
        "auto", description="manual: a person reads the report and runs wenlan-data publish"
    )
    min_samples: int = Field(1, ge=0, description="fewest samples of the dataset, including its earlier builds")
    min_new: int = Field(0, ge=0, description="fewest samples that a build must add; at 0 a build may add none")
    max_drop_share: float = Field(1.0, gt=0, le=1, description="largest share of all candidates that may be dropped")
    max_unreadable: Share = Field(
        0.01, description="largest share of a source's pages, candidates, bytes or files that cannot be read"
    )
    max_unaccounted: Share = Field(
        0.001,
        description="largest share of a source's files, lines, members or records that are neither candidates nor "
        "decisions nor known to be something else, rounded up to a whole one",
    )
    max_drop: DropShares = Field(DropShares(), description="largest dropped share per stage, for each source")
    max_drift: float = Field(
        0.0,
        ge=0,
        description="largest population stability index against the last published build; 0 = no limit",
    )
    max_domain_share: float = Field(1.0, gt=0, le=1, description="largest share of samples with images from one host")
    max_fallback_share: float = Field(
        1.0, ge=0, le=1, description="largest share of samples whose primary text replaced a removed one"
    )
    min_regions: float = Field(0.0, ge=0, description="least mean of regions per image, of the first detector")
    judged_from: int = Field(100, gt=0, description="fewest entries of a source at a stage for its share to count")


_TEXT_FILTERS = ("text_length", "han_share", "boilerplate", "repetition", "ads", "personal_data")
_IMAGE_FILTERS = ("image_sides", "image_aspect", "image_blank")
DEFAULT_FILTERS = tuple(PluginRef(name=name) for name in (*_TEXT_FILTERS, *_IMAGE_FILTERS))


class BuildSpec(Spec):
    """One dataset build. Ready specs: data_specs/*.yaml."""

    name: str = Field(pattern=NAME, description="name of the dataset: lower-case letters, digits, - and _")
    description: str = Field("", description="description of the dataset; shown on its card")
    licence: str = Field("", description="terms of use of the dataset; shown on its card")
    contact: str = Field(min_length=3, description="URL or e-mail address for site owners; sent in the user agent")
    seed: int = Field(0, description="seed of the sample order and of the splits")
    text_kinds: tuple[str, ...] = Field(
        ("caption", "alt", "content", "title", "surrounding", "abstract", "tag"),
        description="the primary text of a sample is that of the first kind in this list that it has, and texts of "
        "other kinds are left out; in the default order a text right beside a picture that few others of its page "
        "share comes before the title",
    )
    sources: tuple[SourceRef, ...] = Field(min_length=1, description="where pages and candidates come from")
    egress: Egress = Egress()
    admit: Admit = Admit()
    fetch: Fetch = Fetch()
    filters: tuple[PluginRef, ...] = Field(
        DEFAULT_FILTERS, description="filters by name, with their options; `wenlan-data plugins` lists them"
    )
    dedup: Dedup = Dedup()
    watermark: Watermark | None = Field(
        None, description="drop pictures that carry the watermark of their host; by default off"
    )
    pair_score: PairScore | None = Field(
        None, description="score every pair by its words, or with an image and a text tower; by default off"
    )
    semantic_dedup: SemanticDedup | None = Field(
        None, description="keep one of the images whose features nearly agree; by default off"
    )
    balance: Balance | None = Field(None, description="keep a share of the pairs of frequent concepts; by default off")
    regions: Regions = Regions()
    shards: Shards = Shards()
    report: Report = Report()
    publish: Publish = Publish()
    base: str = Field("", description="folder that relative paths start from; by default the spec file's")
    _digest: str = PrivateAttr("")

    @field_validator("sources")
    @classmethod
    def _names_are_unique(cls, sources: tuple[SourceRef, ...]) -> tuple[SourceRef, ...]:
        names = [source.name for source in sources]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two sources are named {name!r}")
        return sources

    @model_validator(mode="after")
    def _something_is_left_to_train(self) -> BuildSpec:
        if self.shards.dev_share + self.shards.val_share >= 0.9:
            raise ValueError("shards: dev_share and val_share leave nothing to train on")
        return self

    @model_validator(mode="after")
    def _faces_are_looked_for(self) -> BuildSpec:
        finders = sum(ref.name == "faces" for ref in self.regions.detectors)
        if self.shards.faces == "blur" and finders != 1:
            often = "" if not finders else f" exactly once, not {finders} times"
            raise ValueError(f"shards.faces: blur needs the detector `faces` in regions.detectors{often}")
        return self

    @model_validator(mode="after")
    def _features_have_a_tower(self) -> BuildSpec:
        if self.semantic_dedup is not None and (self.pair_score is None or self.pair_score.by_words):
            raise ValueError("semantic_dedup: needs the section pair_score, with an image tower that compares images")
        return self

    def max_drop(self, source: SourceRef, stage: str, default: float | None = None) -> float | None:
        """The share of a source's input that a stage may drop; `default` for a stage that DropShares does not name."""
        own: float | None = getattr(source.max_drop, stage, None)
        expected: float | None = getattr(self.publish.max_drop, stage, default)
        return expected if own is None else own

    @property
    def digest(self) -> str:
        """sha256 of the resolved spec without `base`: a spec that is moved to another folder stays the same.

        A spec that was read from build.json, where passwords are not written, keeps the digest that it had with them.
        """
        values = self.model_dump(mode="json", exclude={"base"})
        return self._digest or hashlib.sha256(canonical_json(values)).hexdigest()

    def with_digest(self, digest: str) -> BuildSpec:
        """This spec under a digest that was computed before passwords were cut from its URLs."""
        spec = self.model_copy()
        spec._digest = digest
        return spec


def load(path: str | Path) -> BuildSpec:
    """Read and check a spec. Raises a SpecError that names the file and every faulty field."""
    path = str(path) if "://" in str(path) else Path(path)
    raw = read(path)
    if not isinstance(raw, dict):
        raise SpecError([f"{path}: a spec is a mapping with name, contact and sources"])
    raw.setdefault("base", path.rpartition("/")[0] if isinstance(path, str) else str(path.resolve().parent))
    try:
        spec = BuildSpec.model_validate(raw)
    except ValidationError as e:
        raise SpecError(OptionLines(path).with_locations(describe(e, BuildSpec))) from None
    try:
        _ = spec.digest  # every build needs it: what JSON cannot hold is a fault of the spec
    except (ArithmeticError, TypeError, ValueError, RecursionError) as e:
        raise SpecError([f"{path}: a value cannot be written as JSON: {one_line(e)}"]) from None
    return spec


def resolve_path(base: str, path: str) -> str:
    """A path or URL of a spec, made absolute against its `base`, a folder or its URL."""
    if "://" in path or Path(path).is_absolute() or not base:
        return path
    return f"{base.rstrip('/')}/{path}" if "://" in base else str(Path(base) / path)
