# SPDX-License-Identifier: Apache-2.0
"""Is an image of the catalogue what it was when it came, and fit for a job's guests?"""

import os
from dataclasses import dataclass

from vtorque import imagecontents, imageheader, imageprobe, images
from vtorque.deadline import Deadline
from vtorque.errors import ImageError
from vtorque.imagecontents import Contents, Finding
from vtorque.images import Header, Revision

_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An intact image: its header unless nodes fetch it, what was found in it, and what of that is a problem."""

    header: Header | None
    contents: Contents
    problems: tuple[Finding, ...]

    def text(self) -> str:
        """In one line, without the problems."""
        if self.header is None:
            return self.contents.unread
        about = f", {self.contents.system}" if self.contents.system else ""
        return f"{self.header.format}, {self.header.size >> 20} MiB, intact{about}"


def verify(found: Revision, *, share: str) -> Verdict:
    """Check who could have changed an image, its header, its digests, and its contents for guests with SHARE `share`.

    Whether anybody can become root in it is remembered beside it, if root asks.
    Raises ConfigError or ImageError when it must not be used.
    """
    image = found.image
    images.require_trusted(image)
    for path, wanted in found.parts().items():
        if wanted and images.digest(path) != wanted:
            raise ImageError(f"{path} differs from its digest in the catalogue")
    if image.url:
        contents = Contents(unread=f"each node fetches it from {image.url}")
        return Verdict(header=None, contents=contents, problems=())
    deadline = Deadline(_SECONDS)
    probed = imageprobe.probe(image.path, deadline=deadline)
    with imageheader.opened(image.path) as (handle, _):
        contents = imagecontents.look(handle, deadline=deadline)
    probed.require_same()
    # Where the catalogue is only to be read, this is for those to remember who keep it.
    if os.geteuid() == 0 and not os.statvfs(image.path.parent).f_flag & os.ST_RDONLY:
        images.seal(image.path.parent, image.sha256, sealed=contents.sealed)
    problems = contents.problems(share=share, trusted=image.trusted)
    return Verdict(header=probed.header, contents=contents, problems=problems)
