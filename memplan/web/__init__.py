"""The web service: the page and the REST API over one core (extra: `memplan[web]`).

    memplan serve                       from the command line
    memplan.web.app.create_app()        an ASGI application for a server of one's own

What a client sends is data: it names no file, is never unpickled or imported, and reaches no other host. Only the analytic
engine answers; traces and measurements are not run from here, and torch is never imported.
"""
