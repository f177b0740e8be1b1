"""The methods: one file each paper, one line each in the table of `registry`."""

from __future__ import annotations

from surefoot.methods.arf import arf
from surefoot.methods.car_ft import car_ft
from surefoot.methods.clip_cite import clip_cite
from surefoot.methods.flyp import flyp, flyp_ce
from surefoot.methods.l2_sp import l2_sp
from surefoot.methods.lp import lp, lp_ft
from surefoot.methods.registry import ALL, METHODS, adapted, base_of, get, parameters, setting_problems, variant_settings, without
from surefoot.methods.tp_ft import ft, tp_ft
from surefoot.methods.wise_ft import wise_ft
from surefoot.methods.zero_shot import zero_shot

__all__ = [
    "ALL",
    "METHODS",
    "adapted",
    "arf",
    "base_of",
    "car_ft",
    "clip_cite",
    "flyp",
    "flyp_ce",
    "ft",
    "get",
    "l2_sp",
    "lp",
    "lp_ft",
    "parameters",
    "setting_problems",
    "tp_ft",
    "variant_settings",
    "wise_ft",
    "without",
    "zero_shot",
]
