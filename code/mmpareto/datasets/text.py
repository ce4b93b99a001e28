"""Text: files or cells of a list -> token ids, by a tokenizer that the run keeps.

The tokenizer is part of the `Modality`, as the JSON text of the `tokenizers` library.

Shapes: l tokens of a sample, L greatest length, V size of the vocabulary.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmpareto.datasets.base import DatasetError, Modality
from mmpareto.datasets.files import refuse_special_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = 8000  # of a tokenizer that is trained here
LONGEST_TEXT = 256  # tokens that a sample is cut to, unless another number is given
_MOST_BYTES = 2**24  # of a text file
_UNKNOWN = "[UNK]"
TEXT_SUFFIX = ".txt"
TOKENIZER = "tokenizer.json"  # the file in a folder
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of loader processes


class TextReader:
    """Text in UTF-8: a file, or the text itself.

    Args:
        modality: of kind "tokens" and shape (L, V), with its tokenizer; longer texts are cut to L tokens.
        files: whether the samples of a list are files; else its cells hold the text itself.
    """

    def __init__(self, modality: Modality, files: bool = True) -> None:
        if modality.tokenizer is None:
            raise DatasetError("a modality of text needs its tokenizer")
        self.modality, self.files = modality, files

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer = tokenizer_from(self.modality.tokenizer or "")
        tokenizer.enable_truncation(self.modality.shape[0])
        return tokenizer

    def read(self, source: Path | str, generator: torch.Generator | None) -> Tensor:
        """int64 [l]; a text without any token is one unknown token."""
        del generator
        ids = self._tokenizer.encode(text_of(source)).ids
        if not ids:
            ids = [self._tokenizer.token_to_id(_UNKNOWN) or 0]
        return torch.tensor(ids, dtype=torch.int64)

    def check(self, source: Path | str) -> None:
        """Check that it is text."""
        text_of(source)

    def saved(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"reader": "text", "files": self.files}

    def length(self, source: Path | str) -> int:
        """Tokens of a sample."""
        return max(1, len(self._tokenizer.encode(text_of(source)).ids))


def is_path_of_text(cell: str, folder: Path) -> bool:
    """Whether the cell of a list is the path of a text file below `folder`, and not the text itself.

    It ends in .txt, and there is such a file, or it is a single word: text hardly is.
    """
    return cell.lower().endswith(TEXT_SUFFIX) and (len(cell.split()) == 1 or os.path.isfile(folder / cell))


def text_of(source: Path | str) -> str:
    """The text itself, or that of a file.

    Raises:
        DatasetError: where the file cannot be read as UTF-8, or the text has no form in it.
    """
    if isinstance(source, str):
        try:
            source.encode()
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"the text has a character that UTF-8 does not know ({source[error.start]!a} at {error.start}); "
                "give text in UTF-8"
            ) from error
        return source
    refuse_special_file(source)
    try:
        if source.stat().st_size > _MOST_BYTES:
            raise DatasetError(f"{source}: is larger than {_MOST_BYTES >> 20} MiB; expected the text of one sample")
        return source.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"{source}: there is no such file; a word that ends in .txt is the path of one") from error
    except OSError as error:
        raise DatasetError(f"{source}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{source}: is not text in UTF-8 (byte {error.start}); save it in UTF-8") from error


def _library() -> Any:
    try:
        import tokenizers  # an extra of the package
    except ImportError as error:
        raise DatasetError("text needs the library tokenizers: pip install tokenizers") from error
    return tokenizers


def tokenizer_from(text: str) -> Tokenizer:
    """A tokenizer of the `tokenizers` library from its JSON text.

    Raises:
        DatasetError: where the library is missing, or the text is something else.
    """
    tokenizers = _library()
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise DatasetError(f"no tokenizer of the library tokenizers: {error}") from error


def load_tokenizer(where: str) -> str:
    """The JSON text of a tokenizer: a tokenizer.json, a folder that holds one, or the name of a model on the Hub.

    Raises:
        DatasetError: where there is none.
    """
    path = Path(where).expanduser()
    file = path / TOKENIZER if path.is_dir() else path
    if file.exists():
        return tokenizer_from(text_of(file)).to_str()
    if path.exists() or path.is_absolute() or where.startswith((".", "~")):
        raise DatasetError(f"--tokenizer {where}: there is no {file}; give a tokenizer.json or a folder that has one")
    tokenizers = _library()
    try:
        return tokenizers.Tokenizer.from_pretrained(where).to_str()
    except Exception as error:
        raise DatasetError(
            f"--tokenizer {where}: no such file or folder, and the tokenizer of that name could not be downloaded "
            f"({str(error).splitlines()[0]:.200}); give the path of a tokenizer.json"
        ) from error


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> str:
    """The JSON text of a tokenizer trained on some texts: byte pairs of lower-case words (Sennrich et al., ACL 2016).

    Args:
        vocabulary: greatest number of tokens.

    Raises:
        DatasetError: where the library is missing.
    """
    library = _library()
    normalizers, special = library.normalizers, ["[PAD]", _UNKNOWN]
    tokenizer = library.Tokenizer(library.models.BPE(unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    trainer = library.trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


def text_modality(
    sources: Iterable[Path | str], longest: int | None, vocabulary: int | None, tokenizer: str | None
) -> Modality:
    """The modality of texts like these training samples.

    Args:
        longest: L; None: that of the longest one, at most LONGEST_TEXT.
        vocabulary: of a tokenizer that is trained on them; None: VOCABULARY.
        tokenizer: see `load_tokenizer`; None: one is trained.
    """
    sources = list(sources)
    content = (
        train_tokenizer(map(text_of, sources), vocabulary or VOCABULARY)
        if tokenizer is None
        else load_tokenizer(tokenizer)
    )
    prepared = tokenizer_from(content)
    prepared.no_truncation()
    prepared.no_padding()
    size = prepared.get_vocab_size()
    if longest is None:
        longest = min(LONGEST_TEXT, max(len(prepared.encode(text_of(source)).ids) for source in sources))
    return Modality("tokens", (max(1, longest), size), tokenizer=prepared.to_str())
