"""Texts that the tutorials read, and that no bundled model was trained on."""

BALCONY = """JULIET.
O Romeo, Romeo, wherefore art thou Romeo?
Deny thy father and refuse thy name.
Or if thou wilt not, be but sworn my love,
And I'll no longer be a Capulet.

ROMEO.
[Aside.] Shall I hear more, or shall I speak at this?

JULIET.
'Tis but thy name that is my enemy;
Thou art thyself, though not a Montague.
What's Montague? It is nor hand nor foot,
Nor arm, nor face, nor any other part
Belonging to a man. O be some other name.
What's in a name? That which we call a rose
By any other name would smell as sweet;"""
"""From *Romeo and Juliet*, act 2, scene 2."""
