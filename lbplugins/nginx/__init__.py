"""The nginx plugin: `plugin: nginx`."""

from lbplugins.nginx.options import NginxOptions
from lbplugins.nginx.plugin import Nginx

__all__ = ["Nginx", "NginxOptions"]
