"""The nginx plugin: `plugin: nginx`."""

from lbplugins.nginx.options import NginxOptions
from lbplugins.nginx.plugin import Nginx
from lbplugins.nginx.traffic import LOG_FORMAT

__all__ = ["LOG_FORMAT", "Nginx", "NginxOptions"]
