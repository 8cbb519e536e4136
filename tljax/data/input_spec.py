"""What a network reads, images or texts, and all that depends on which of the two it is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tljax.config.schema import TaskConfig
from tljax.data.dataset import Split
from tljax.data.preprocessing import Preprocessing
from tljax.data.readers import ImageReader, TextReader
from tljax.data.transforms import image
from tljax.data.transforms.decode import frames_of, size_of
from tljax.data.transforms.tokenize import Tokenizer, tokenized
from tljax.errors import InputError


@dataclass(frozen=True)
class ImageInput:
    """Images as uint8 [height, width, channels].

    Attributes:
        preprocessing: what the weights expect, at the task's image size and number of channels.
    """

    preprocessing: Preprocessing

    kind: ClassVar[str] = "image"
    # The keys of `TaskConfig` that only images heed, and the columns of an index that say how large an example is.
    config_keys: ClassVar = ("image_size", "channels", "decode", "resize", "crop", "augment", "views", "flip_test")
    size_columns: ClassVar = ("height", "width")

    @staticmethod
    def noun(pairs: bool = False) -> str:
        """Returns what messages call examples of this kind."""
        del pairs
        return "images"

    @staticmethod
    def fields(pairs: bool = False) -> tuple[str, ...]:
        """Returns the names of an example's inputs."""
        del pairs
        return ("image",)

    @staticmethod
    def tfds_features(pairs: bool = False) -> dict[str, Any]:
        """Returns how TFDS stores an example's inputs, by name."""
        del pairs
        from tensorflow_datasets import features

        return {"image": features.Image(shape=(None, None, 3))}

    @staticmethod
    def check_content(content: bytes, name: str) -> tuple[int, int]:
        """Decodes an image, which finds damage, and returns its width and height when it is upright."""
        return image.decode(content, name).size

    @staticmethod
    def check_header(contents: Sequence[bytes]) -> tuple[int, int]:
        """Returns the width and height of an upright image from its header alone."""
        return size_of(contents[0])

    @staticmethod
    def note(content: bytes) -> str:
        """Returns what of an example is not read as it is; empty where all of it is."""
        frames = frames_of(content)
        return f"the first of {frames} pictures is taken" if frames > 1 else ""

    @staticmethod
    def named_columns(config: TaskConfig) -> tuple[str, ...]:
        """Returns the columns of a table that a config names as inputs."""
        return (config.image,) if config.image else ()

    @property
    def values(self) -> int:
        """The count of numbers in an example."""
        return self.preprocessing.size**2 * self.preprocessing.inputs

    def describe(self) -> str:
        """Returns what the network reads, for the log."""
        return f"images at {self.preprocessing.size} px"

    def varies(self, config: TaskConfig) -> bool:
        """Tells whether chance cuts or augments a training example."""
        return config.varies

    def abstract(self, length: int = 0) -> jax.ShapeDtypeStruct:
        """Returns the shape and dtype of one example as the host sends it to the device."""
        del length
        size = self.preprocessing.size
        return jax.ShapeDtypeStruct((size, size, self.preprocessing.inputs), np.uint8)

    def example(self) -> jax.Array:
        """Returns a batch of one example by which a network's shapes are traced."""
        size = self.preprocessing.size
        return jnp.zeros((1, size, size, self.preprocessing.inputs))

    def fit(self, backbone: Any) -> Any:
        """Returns the backbone for inputs of this size."""
        return backbone.resized(self.preprocessing.size)

    def to_network(self, x: Any, dtype: jnp.dtype) -> jax.Array:
        """Returns what the stem takes of a batch: normalized images."""
        return image.normalize(x, self.preprocessing).astype(dtype)

    def reader(
        self,
        split: Split,
        config: TaskConfig,
        *,
        tokenizer: Tokenizer | None,
        training: bool,
        seed: int,
        cache_bytes: float,
        workers: int,
    ) -> ImageReader:
        """Returns what reads batches of a split.

        Args:
            split: whose examples.
            config: how training images are cut and augmented.
            tokenizer: of texts.
            training: whether the examples are cut and augmented for training.
            seed: of crops and augmentation.
            cache_bytes: disk that images, each decoded once, may take; 0 to decode them each time.
            workers: threads that decode.
        """
        del tokenizer
        return ImageReader(split, self.preprocessing, config, training, seed=seed).keep(cache_bytes, workers)

    def prepare(self, content: Any, name: str) -> np.ndarray:
        """Returns an image, in any form that `image.view_of` takes, as evaluation sees it; errors call it `name`."""
        return image.view_of(content, name, self.preprocessing)

    def batch(self, examples: Sequence[np.ndarray], config: TaskConfig, tokenizer: Tokenizer | None) -> np.ndarray:
        """Returns one input of several images.

        Args:
            examples: what `prepare` gave of each.
            config: of texts.
            tokenizer: of texts.
        """
        del config, tokenizer
        return np.stack(examples)

    def measured(self, train: Split, config: TaskConfig, load_tokenizer: Callable[[], Tokenizer]) -> Mapping[str, Any]:
        """Returns the fields of `Resolved` that a training split decides: none.

        Args:
            train, config, load_tokenizer: of texts.
        """
        del train, config, load_tokenizer
        return {}

    def expected(
        self, config: TaskConfig, own: Preprocessing, tokenizer: Tokenizer | None, origins: dict[str, str]
    ) -> dict[str, str]:
        """Returns how evaluation prepares an example: part -> what is done.

        Args:
            config: may ask for another size, or other channels.
            own: what the weights themselves expect.
            tokenizer: of texts.
            origins: part -> where it is from; what the config decides is put in.
        """
        del tokenizer
        images, edge = self.preprocessing, self.preprocessing.edge
        if config.image_size:
            origins["size"] = "task.image_size"
        if config.channels and config.channels != own.inputs:
            origins |= {part: f"{origins.get(part, '')}, for task.channels" for part in ("mean", "std")}
        origins["channels"] = origins.get("mean", "")
        ways = {"crop": f"shorter side to {edge}", "squash": f"to {edge} × {edge}", "none": "none: others are refused"}
        most = 255 * images.rescale
        return {
            "size": f"{images.size} × {images.size}",
            "resize": ways[images.resize],
            "crop": f"center {images.size} × {images.size}" + (f" of {edge}" if images.size < edge else ""),
            "interpolation": images.interpolation,
            "rescaling": f"grey levels × {images.rescale:.6g}: 0 … {most:.4g}",
            "channels": images.channels,
            "mean": ", ".join(f"{value:.4g}" for value in images.rescaled(images.mean)),
            "std": ", ".join(f"{value:.4g}" for value in images.rescaled(images.std)),
        }


@dataclass(frozen=True)
class TextInput:
    """Texts, or pairs of them, as `input_ids`, `attention_mask` and `token_type_ids`, int32 [tokens].

    Attributes:
        length: tokens of the longest training text, as batches are padded.
    """

    length: int = 0

    kind: ClassVar[str] = "text"
    config_keys: ClassVar = ("tokenizer", "max_tokens", "token_multiple")
    size_columns: ClassVar = ("bytes",)

    @staticmethod
    def noun(pairs: bool = False) -> str:
        """Returns what messages call examples of this kind."""
        return "pairs of texts" if pairs else "texts"

    @staticmethod
    def fields(pairs: bool = False) -> tuple[str, ...]:
        """Returns the names of an example's inputs."""
        return ("text", "text_pair")[: 1 + pairs]

    @staticmethod
    def tfds_features(pairs: bool = False) -> dict[str, Any]:
        """Returns how TFDS stores an example's inputs, by name."""
        from tensorflow_datasets import features

        return {name: features.Text() for name in TextInput.fields(pairs)}

    @staticmethod
    def check_content(content: Any, name: str) -> tuple[int, int]:
        """Returns the width and height of a text, which are 0."""
        del content, name
        return 0, 0

    @staticmethod
    def check_header(contents: Sequence[str]) -> tuple[int, int]:
        """Returns the width and height of texts, which are 0; raises InputError where one of them is empty."""
        if not all(text.strip() for text in contents):
            raise InputError("the text is empty")
        return 0, 0

    @staticmethod
    def note(content: Any) -> str:
        """Returns what of an example is not read as it is: nothing."""
        del content
        return ""

    @staticmethod
    def named_columns(config: TaskConfig) -> tuple[str, ...]:
        """Returns the columns of a table that a config names as inputs."""
        return config.text

    @property
    def values(self) -> int:
        """The count of numbers in an example."""
        return self.length

    def describe(self) -> str:
        """Returns what the network reads, for the log."""
        return f"texts of up to {self.length} tokens"

    def varies(self, config: TaskConfig) -> bool:
        """Tells whether chance changes a training example: never."""
        del config
        return False

    def abstract(self, length: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and dtypes of one example padded to `length` tokens, or to the longest text's."""
        tokens = jax.ShapeDtypeStruct((length or self.length,), np.int32)
        return dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), tokens)

    def example(self) -> dict[str, jax.Array]:
        """Returns a batch of one example by which a network's shapes are traced."""
        tokens = jnp.ones((1, 2), jnp.int32)
        return {"input_ids": tokens, "attention_mask": tokens, "token_type_ids": 0 * tokens}

    def fit(self, backbone: Any) -> Any:
        """Returns the backbone, which takes texts of any length."""
        return backbone

    def to_network(self, x: Any, dtype: jnp.dtype) -> Any:
        """Returns what the stem takes of a batch: the batch."""
        del dtype
        return x

    def reader(
        self,
        split: Split,
        config: TaskConfig,
        *,
        tokenizer: Tokenizer | None,
        training: bool,
        seed: int,
        cache_bytes: float,
        workers: int,
    ) -> TextReader:
        """Returns what reads batches of a split.

        Args:
            split: whose examples.
            config: how many tokens a text may have, and how batches are padded.
            tokenizer: that the weights were trained with.
            training, seed, cache_bytes, workers: of images.
        """
        del training, seed, cache_bytes, workers
        tokens = tokenized(split, tokenizer, config.max_tokens)
        return TextReader(tokens, tokenizer, config.token_multiple, config.max_tokens)

    def prepare(self, content: Any, name: str) -> Any:
        """Returns a text, or two, as `batch` takes them; errors call it `name`."""
        texts = content if isinstance(content, tuple) else (content,)
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{name}: {content!r:.60} is no text: give a str, or of a pair a tuple of two")
        return content

    def batch(self, examples: Sequence[Any], config: TaskConfig, tokenizer: Tokenizer | None) -> dict[str, np.ndarray]:
        """Returns one input of several texts.

        Args:
            examples: texts, or pairs of them.
            config: how many tokens a text may have, and how batches are padded.
            tokenizer: that the weights were trained with.
        """
        tokens, _ = tokenizer.encode(examples, config.max_tokens)
        return TextReader(tokens, tokenizer, config.token_multiple, config.max_tokens)(range(len(tokens)))

    def measured(self, train: Split, config: TaskConfig, load_tokenizer: Callable[[], Tokenizer]) -> Mapping[str, Any]:
        """Returns the fields of `Resolved` that a training split decides: `tokenizer`, `length` and `truncated`.

        Args:
            train: the training split.
            config: how many tokens a text may have, and how batches are padded.
            load_tokenizer: reads the tokenizer.
        """
        tokenizer = load_tokenizer()
        tokens = tokenized(train, tokenizer, config.max_tokens)
        reader = TextReader(tokens, tokenizer, config.token_multiple, config.max_tokens)
        length, cut = reader.padded(int(tokens.shapes[:, 1].max())), (tokens.facts["truncated"], tokens.facts["lost"])
        return {"tokenizer": tokenizer.sha256, "length": length, "truncated": cut}

    def expected(
        self, config: TaskConfig, own: Preprocessing, tokenizer: Tokenizer | None, origins: dict[str, str]
    ) -> dict[str, str]:
        """Returns how evaluation prepares an example: part -> what is done.

        Args:
            config: says how many tokens a text may have.
            own: of images.
            tokenizer: may have a lower limit.
            origins: part -> where it is from; that of `tokens` is put in.
        """
        del own
        most = tokenizer.cut(config.max_tokens)
        origins["tokens"] = tokenizer.settings.limited_by if most < config.max_tokens else "task.max_tokens"
        return {"tokens": f"at most {most}"}


InputSpec = ImageInput | TextInput
INPUTS: dict[str, type[ImageInput] | type[TextInput]] = {spec.kind: spec for spec in (ImageInput, TextInput)}


def input_spec(kind: str, preprocessing: Preprocessing, length: int = 0) -> InputSpec:
    """Returns the input of a network.

    Args:
        kind: `image` or `text`.
        preprocessing: of images, what the weights expect.
        length: of texts, the tokens that the longest is padded to.
    """
    return ImageInput(preprocessing) if kind == ImageInput.kind else TextInput(length)
