# SPDX-License-Identifier: Apache-2.0
"""The NoCloud seed: an ISO 9660 image made in memory, without mounting anything."""

import io
from collections.abc import Mapping

LABEL = "cidata"
"""The volume label by which cloud-init's NoCloud source finds its data."""


def iso(contents: Mapping[str, str]) -> bytes:
    """An ISO image with the given files, under their Rock Ridge and Joliet names.

    ISO 9660's own names cannot hold `user-data`; the guest reads one of the
    other two, depending on its kernel.
    """
    import pycdlib  # 30 ms that only a start has to pay for

    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, text) in enumerate(contents.items()):
        data = text.encode()
        image.add_fp(
            io.BytesIO(data),
            len(data),
            f"/F{number}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
        )
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()
