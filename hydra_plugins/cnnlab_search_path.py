"""Makes Hydra search the option files of a project before ours (see cnnlab.config.options)."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from cnnlab.config.options import folders


class ProjectOptions(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(folders()[:-1]):
            search_path.prepend("project", f"file://{folder}")
