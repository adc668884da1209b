"""Downloads over https: verified, resumed after an interruption, and visible only when complete."""

import hashlib
import os
import ssl
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from cnnlab.config.options import UserError
from cnnlab.runs.readers import open_regular


class ContentError(Exception):
    """A complete download with the wrong content."""


def reason(error: Exception) -> str:
    """Why a source failed, in one phrase."""
    if isinstance(error, urllib.error.HTTPError):
        return f"answered {error.code} {error.reason}"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


class _OnlyHTTPS(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        if not url.startswith("https://"):
            raise ContentError(f"redirects to {url}, which is not https")
        return super().redirect_request(request, file, code, message, headers, url)


def download(source: str, target: Path, sha256: str, timeout: float, attempts: int = 3) -> None:
    """Download `source` to the file `target`, which appears only when it is complete and verified.

    An interrupted transfer is resumed, up to `attempts` times and again by the next call.

    Raises: OSError, HTTPException if the source fails; ContentError if its content has another SHA-256.
    """
    opener = urllib.request.build_opener(_OnlyHTTPS, urllib.request.HTTPSHandler(context=ssl.create_default_context()))
    partial = target.with_name(f"{target.name}.{hashlib.sha256(source.encode()).hexdigest()[:8]}.part")
    resumed = partial.exists()
    for attempt in range(1, attempts + 1):
        try:
            _append(opener, source, partial, timeout)
            break
        except urllib.error.HTTPError as error:
            if error.code == 416 and partial.exists():  # the part is complete, or wrong
                break
            if attempt == attempts or error.code < 500:
                raise
        except (OSError, HTTPException):
            if attempt == attempts:
                raise
        time.sleep(attempt)
    if (found := file_sha256(partial)) != sha256:
        partial.unlink()
        if resumed:  # the part may have come from another file
            download(source, target, sha256, timeout, attempts)
            return
        raise ContentError(f"its content has the SHA-256 {found}, expected {sha256}")
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    partial.replace(target)
    for other in target.parent.glob(f"{target.name}.*.part"):  # from sources that failed
        other.unlink()


def _append(opener: urllib.request.OpenerDirector, source: str, partial: Path, timeout: float) -> None:
    """Download what the partial file lacks, with a progress bar."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    size = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(source, headers={"Range": f"bytes={size}-"} if size else {})
    with opener.open(request, timeout=timeout) as response:
        if response.status != 206:  # the source sends the whole file
            size = 0
        length = response.headers.get("Content-Length")
        total = size + int(length) if length else None
        columns = (TextColumn("fetching {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with open(partial, "r+b" if size else "wb") as file, Progress(*columns, TimeRemainingColumn()) as progress:
            task = progress.add_task(source.split("/")[2], total=total, completed=size)
            file.seek(size)
            while chunk := response.read1(1 << 20):
                file.write(chunk)
                progress.update(task, advance=len(chunk))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"broke off after {file.tell():,} of {total:,} bytes")


def file_sha256(path: Path) -> str:
    """Raises: UserError if the file cannot be read."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}). Make it readable, or delete it.") from error
    with file:
        return hashlib.file_digest(file, "sha256").hexdigest()
