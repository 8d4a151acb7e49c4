"""An inspection as a picture: ``geometry`` says where things stand, ``strips`` draws them row by row.

``picture`` puts the strips into one SVG document, ``page`` into an HTML page.
"""
