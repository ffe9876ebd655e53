# SPDX-License-Identifier: LGPL-2.1-or-later

"""How fast drgn-hvo is, measured against its peers in the same run."""
