"""The command that fetches public data, or lists what there is."""

from __future__ import annotations

from pathlib import Path

from hemstitch.commands._show import _print
from hemstitch.speech import RESOURCES, download_resource
from hemstitch.train import Console


def download(name: str | None, folder: Path, checksum: str) -> int:
    """Fetch a resource into a folder; without a name, list them."""
    if name is None:
        return _list_resources()
    console = Console()
    with console.progress(100, f"fetching {name}") as bar:
        path = download_resource(
            name, folder, checksum=checksum,
            progress=lambda done, total: bar.update(100 * done // max(total, 1), f"fetching {name}"),
        )
    print(path)
    print(f"licence: {RESOURCES[name].licence}; next: {RESOURCES[name].use}")
    return 0


def _list_resources() -> int:
    import rich.table

    table = rich.table.Table("name", "size, MB", "checksum", "licence", "next", box=None,
                             title="Public data (hemstitch download NAME FOLDER)", title_justify="left")
    for name, resource in RESOURCES.items():
        known = resource.checksum.partition(":")[0] or "not known: --checksum"
        table.add_row(name, f"{resource.size / 1e6:,.1f}" if resource.size else "?", known, resource.licence,
                      resource.use)
    _print(table)
    return 0
