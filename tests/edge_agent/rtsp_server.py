"""A real RTSP server of test pictures (GStreamer), run by the system's Python: rtsp_server.py [USER PASSWORD]

Paths: /h264, /mjpeg, /sound. Prints its port and serves until it is ended.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

SIZE = "video/x-raw,width=320,height=240,framerate=15/1,format=I420"
PATHS = {
    "/h264": f"( videotestsrc is-live=true pattern=ball ! {SIZE} ! x264enc tune=zerolatency key-int-max=15 "
    "! rtph264pay name=pay0 pt=96 )",
    "/mjpeg": f"( videotestsrc is-live=true pattern=ball ! {SIZE} ! jpegenc ! rtpjpegpay name=pay0 pt=26 )",
    "/sound": "( audiotestsrc is-live=true ! audio/x-raw,rate=8000,channels=1 ! mulawenc ! rtppcmupay name=pay0 )",
}


def main(user: str = "", password: str = "") -> None:
    """Serve."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service("0")
    if user:
        auth, token = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
        token.set_string("media.factory.role", "user")
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token)
        server.set_auth(auth)
    for path, pipeline in PATHS.items():
        factory = GstRtspServer.RTSPMediaFactory()
        factory.set_launch(pipeline)
        factory.set_shared(True)
        if user:
            role = "user,media.factory.access=true,media.factory.construct=true"
            factory.add_role_from_structure(Gst.Structure.from_string(role)[0])
        server.get_mount_points().add_factory(path, factory)
    server.attach(None)
    sys.stdout.write(f"{server.get_bound_port()}\n")
    sys.stdout.flush()
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
