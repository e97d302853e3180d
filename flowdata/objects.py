"""Objects of a store, or files of whatever else fsspec opens, under the names that pathlib has."""

import contextlib
import errno
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Where a put is whole or never there. Elsewhere (SFTP, SMB, HDFS) a file grows as it is written.
_STORES = {
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "cos", "obs", "tos"),
    *("r2", "hf", "memory"),
}
_USER = re.compile(r"://[^\s/@'\"]*@")
_QUERY = re.compile(r"(://[^\s?#'\"]*)[?#][^\s'\"]*")


class StoreError(OSError):
    """What a store did instead of what it was asked for; its text shows no secrets."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code, text)
        self.text = text


def without_secrets(text: str) -> str:
    """A text whose URLs have neither users nor queries, which may hold passwords and signatures.

    >>> without_secrets("cannot open https://me:word@host/x.parquet?sig=1: 403")
    'cannot open https://host/x.parquet 403'
    """
    return _QUERY.sub(r"\1", _USER.sub("://", text))


class ObjectPath(os.PathLike[str]):
    """An object, or what has others below its name.

    Nothing is kept from one question to the next: listings are asked for anew. What fails for a
    moment is tried again by the library of the store, as it is set up; then it is a StoreError, or,
    for what is not there, a FileNotFoundError.
    """

    def __init__(self, url: str) -> None:
        scheme, _, rest = url.partition(":")
        # As pathlib leaves it, with one slash.
        self._url = f"{scheme}://{rest.lstrip('/')}"

    def __fspath__(self) -> str:
        return self._url

    def __str__(self) -> str:
        return without_secrets(self._url)

    def __repr__(self) -> str:
        return f"ObjectPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectPath) and self._url == other._url

    def __lt__(self, other: "ObjectPath") -> bool:
        return self._url < other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str) -> "ObjectPath":
        return ObjectPath(f"{self._url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self._url.partition("://")[2].rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The end of its name from the last dot on."""
        return Path(self.name).suffix

    @property
    def parent(self) -> "ObjectPath":
        """What it lies in."""
        return ObjectPath(self._url.rpartition("/")[0])

    def with_name(self, name: str) -> "ObjectPath":
        """What lies beside it."""
        return ObjectPath(f"{self._url.rpartition('/')[0]}/{name}")

    def is_file(self) -> bool:
        """Whether there is such an object.

        Raises:
            StoreError: when that cannot be told.
        """
        try:
            with self._opened() as (files, path):
                return bool(files.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def is_dir(self) -> bool:
        """Whether there are objects below this name."""
        return bool(self.names())

    def names(self) -> list[str]:
        """The names of all that is right below this one; none where there is nothing.

        Raises:
            StoreError: when they cannot be listed.
        """
        try:
            with self._opened() as (files, path):
                found = files.ls(path, detail=False)
        except FileNotFoundError:
            return []
        names = {name.rstrip("/").rpartition("/")[2] for name in found}
        return sorted(names - {self.name, ""})

    def read_bytes(self) -> bytes:
        """All of it."""
        with self._opened() as (files, path):
            content: bytes = files.cat_file(path)
        return content

    @contextlib.contextmanager
    def replacing(self) -> Iterator[Path]:
        """Yield the name of a file of this machine; on success, put its content in one go."""
        with tempfile.TemporaryDirectory(prefix="flowdata-") as folder:
            source = Path(folder) / "content"
            yield source
            self._put(source)

    def _put(self, source: Path) -> None:
        size = source.stat().st_size
        found = -1
        with self._opened() as (files, path):
            protocols = {files.protocol} if isinstance(files.protocol, str) else {*files.protocol}
            if protocols & _STORES:
                files.put_file(str(source), path)
            else:
                aside = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
                files.put_file(str(source), aside)
                files.mv(aside, path)
            files.invalidate_cache()
            # Some stores take what they do not keep: asked, and not believed.
            with contextlib.suppress(FileNotFoundError):
                found = int(files.info(path)["size"])
        if found != size:
            what = "is not there" if found < 0 else f"has {found:,} of {size:,} bytes"
            raise StoreError(errno.EIO, f"what was put {what}")

    def rename(self, target: "ObjectPath") -> None:
        """Give it another name."""
        with self._opened() as (files, path):
            files.mv(path, files._strip_protocol(os.fspath(target)))  # noqa: SLF001

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete it."""
        try:
            with self._opened() as (files, path):
                files.rm_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, str]]:
        """The file system and the path in it, with errors that say what happened and no secret."""
        import fsspec

        try:
            files, path = fsspec.core.url_to_fs(self._url)
            files.invalidate_cache()
            yield files, path
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self)) from None
        except PermissionError as error:
            raise StoreError(errno.EACCES, f"access denied ({_said(error)})") from None
        except ImportError as error:
            raise StoreError(errno.ENOSYS, _said(error)) from None
        except MemoryError:
            raise
        # Each library has errors of its own.
        except Exception as error:
            text = f"{type(error).__name__}: {_said(error)}"
            if "Protocol not known" in text:
                # fsspec 2026.9, get_filesystem_class.
                text = (
                    f"fsspec opens no {self._url.partition('://')[0]}://, but s3://, gs://, az://, "
                    "memory:// and what fsspec.available_protocols() names"
                )
            raise StoreError(errno.EIO, text) from None


def _said(error: Exception) -> str:
    return without_secrets(" ".join(str(error).split()))[:500]
