# SPDX-License-Identifier: LGPL-2.1-or-later

"""What makes documentation pages, and measures the code; not in the wheel."""
