PRAGMA page_size = 4096;
BEGIN TRANSACTION;
CREATE TABLE fields (run INTEGER, name TEXT, text TEXT, PRIMARY KEY (run, name)) WITHOUT ROWID;
INSERT INTO "fields" VALUES(1,'graph','[["reserve",[],1,0],["charge",["reserve"],0,0]]');
INSERT INTO "fields" VALUES(1,'s:charge','5 {"status":"success","attempts":1,"result":"\"paid\"","waited":1.767300273058936e-05,"ran":1.3725999451708049e-05,"backed_off":0.0,"started":1795954651.7215893}');
INSERT INTO "fields" VALUES(1,'s:reserve','3 {"status":"success","attempts":1,"result":"{\"seat\":\"12A\",\"price\":{\"$\":\"Decimal\",\"v\":\"9.90\"},\"at\":{\"$\":\"datetime\",\"v\":[\"2026-11-29T00:00:00\",0,[[0,0,0]]]},\"pair\":{\"$\":\"tuple\",\"v\":[1,2]}}","effect":true,"waited":5.015399801777676e-05,"ran":6.450000364566222e-05,"backed_off":0.0,"started":1795954651.720333}');
INSERT INTO "fields" VALUES(1,'values','{"card":"\"good\""}');
INSERT INTO "fields" VALUES(1,'w:seen','2 {"value":"{\"$\":\"set\",\"v\":[\"caf\\u00e9\",\"tea\"]}"}');
INSERT INTO "fields" VALUES(2,'error','{"type":"PermissionError","message":"card declined","traceback":"Traceback (most recent call last):\n  File \"/srv/flowcore/flowcore/_engines/thread_driver.py\", line 304, in call_here\n    return context.run(fn, ctx), None\n           ^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/flowcore/tests/stores/released.py\", line 52, in charge\n    raise PermissionError(\"card declined\")\nPermissionError: card declined\nflowcore: run d45eb2000711958b6c8b82fa1f0afc49 of workflow ''order'' failed at step ''charge'' after 2 attempts; undone: ''reserve''.\n"}');
INSERT INTO "fields" VALUES(2,'failed_step','"charge"');
INSERT INTO "fields" VALUES(2,'graph','[["reserve",[],1,0],["charge",["reserve"],0,0]]');
INSERT INTO "fields" VALUES(2,'s:charge','6 {"status":"failure","attempts":2,"waited":1.9396000425331295e-05,"ran":9.419599518878385e-05,"backed_off":0.0005202210013521835,"failed":2,"errors":[["PermissionError","card declined"],["PermissionError","card declined"]],"started":1795954651.7242785,"error":{"type":"PermissionError","message":"card declined","traceback":"Traceback (most recent call last):\n  File \"/srv/flowcore/flowcore/_engines/thread_driver.py\", line 304, in call_here\n    return context.run(fn, ctx), None\n           ^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/flowcore/tests/stores/released.py\", line 52, in charge\n    raise PermissionError(\"card declined\")\nPermissionError: card declined\n"}}');
INSERT INTO "fields" VALUES(2,'s:reserve','7 {"status":"success","attempts":1,"result":"{\"seat\":\"12A\",\"price\":{\"$\":\"Decimal\",\"v\":\"9.90\"},\"at\":{\"$\":\"datetime\",\"v\":[\"2026-11-29T00:00:00\",0,[[0,0,0]]]},\"pair\":{\"$\":\"tuple\",\"v\":[1,2]}}","effect":true,"waited":3.011600347235799e-05,"ran":3.778999962378293e-05,"backed_off":0.0,"started":1795954651.7236469,"undo":"success"}');
INSERT INTO "fields" VALUES(2,'undone','["reserve"]');
INSERT INTO "fields" VALUES(2,'values','{"card":"\"stolen\""}');
INSERT INTO "fields" VALUES(2,'w:seen','2 {"value":"{\"$\":\"set\",\"v\":[\"caf\\u00e9\",\"tea\"]}"}');
INSERT INTO "fields" VALUES(3,'error','{"type":"CompensationFailed","message":"run 797d26f9cd06568e20271f4b88faf843 of ''order'' failed (PermissionError: card declined), and undoing ''reserve'' failed too (1 sub-exception)","traceback":"Traceback (most recent call last):\n  File \"/srv/flowcore/flowcore/_engines/thread_driver.py\", line 304, in call_here\n    return context.run(fn, ctx), None\n           ^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/flowcore/tests/stores/released.py\", line 52, in charge\n    raise PermissionError(\"card declined\")\nPermissionError: card declined\n\nThe above exception was the direct cause of the following exception:\n\n  | flowcore.errors.CompensationFailed: run 797d26f9cd06568e20271f4b88faf843 of ''order'' failed (PermissionError: card declined), and undoing ''reserve'' failed too (1 sub-exception)\n  | flowcore: run 797d26f9cd06568e20271f4b88faf843 of workflow ''order'' failed at step ''charge'' after 2 attempts; nothing was undone.\n  |   could not undo ''reserve'': ConnectionError: warehouse is down\n  +-+---------------- 1 ----------------\n    | Traceback (most recent call last):\n    |   File \"/srv/flowcore/flowcore/_engines/thread_driver.py\", line 304, in call_here\n    |     return context.run(fn, ctx), None\n    |            ^^^^^^^^^^^^^^^^^^^^\n    |   File \"/srv/flowcore/tests/stores/released.py\", line 47, in release\n    |     raise ConnectionError(\"warehouse is down\")\n    | ConnectionError: warehouse is down\n    +------------------------------------\n"}');
INSERT INTO "fields" VALUES(3,'failed_step','"charge"');
INSERT INTO "fields" VALUES(3,'graph','[["reserve",[],1,0],["charge",["reserve"],0,0]]');
INSERT INTO "fields" VALUES(3,'s:charge','6 {"status":"failure","attempts":2,"waited":1.732300006551668e-05,"ran":9.472600504523143e-05,"backed_off":0.0005833329996676184,"failed":2,"errors":[["PermissionError","card declined"],["PermissionError","card declined"]],"started":1795954651.730378,"error":{"type":"PermissionError","message":"card declined","traceback":"Traceback (most recent call last):\n  File \"/srv/flowcore/flowcore/_engines/thread_driver.py\", line 304, in call_here\n    return context.run(fn, ctx), None\n           ^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/flowcore/tests/stores/released.py\", line 52, in charge\n    raise PermissionError(\"card declined\")\nPermissionError: card declined\n"}}');
INSERT INTO "fields" VALUES(3,'s:reserve','7 {"status":"success","attempts":1,"result":"{\"seat\":\"12A\",\"price\":{\"$\":\"Decimal\",\"v\":\"9.90\"},\"at\":{\"$\":\"datetime\",\"v\":[\"2026-11-29T00:00:00\",0,[[0,0,0]]]},\"pair\":{\"$\":\"tuple\",\"v\":[1,2]}}","effect":true,"waited":5.052499909652397e-05,"ran":6.0061000112909824e-05,"backed_off":0.0,"started":1795954651.7296062,"undo":"failure","undo_error":{"type":"ConnectionError","message":"warehouse is down","traceback":"Traceback (most recent call last):\n  File \"/srv/flowcore/flowcore/_engines/thread_driver.py\", line 304, in call_here\n    return context.run(fn, ctx), None\n           ^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/flowcore/tests/stores/released.py\", line 47, in release\n    raise ConnectionError(\"warehouse is down\")\nConnectionError: warehouse is down\n"}}');
INSERT INTO "fields" VALUES(3,'values','{"card":"\"stuck\""}');
INSERT INTO "fields" VALUES(3,'w:seen','2 {"value":"{\"$\":\"set\",\"v\":[\"caf\\u00e9\",\"tea\"]}"}');
INSERT INTO "fields" VALUES(4,'error','{"type":"OSError","message":"the disk is full","traceback":"Traceback (most recent call last):\n  File \"/srv/flowcore/flowcore/_engines/thread_driver.py\", line 304, in call_here\n    return context.run(fn, ctx), None\n           ^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/flowcore/tests/stores/released.py\", line 66, in load\n    raise OSError(\"the disk is full\")\nOSError: the disk is full\nflowcore: run fb0e05049721b49b3e9e9e8160cf3797 of workflow ''etl'' failed at step ''load'' after 1 attempt; nothing was undone: the next call with its key continues at the failed step.\n"}');
INSERT INTO "fields" VALUES(4,'failed_step','"load"');
INSERT INTO "fields" VALUES(4,'graph','[["extract",[],0,0],["load",["extract"],0,0]]');
INSERT INTO "fields" VALUES(4,'s:extract','2 {"status":"success","attempts":1,"result":"[1,2,3]","waited":7.567099964944646e-05,"ran":1.8052996892947704e-05,"backed_off":0.0,"started":1795954651.7393017}');
INSERT INTO "fields" VALUES(4,'s:load','4 {"status":"failure","attempts":1,"waited":0.0,"ran":0.00017119000403909013,"backed_off":0.0,"failed":1,"errors":[["OSError","the disk is full"]],"started":1795954651.7428126,"error":{"type":"OSError","message":"the disk is full","traceback":"Traceback (most recent call last):\n  File \"/srv/flowcore/flowcore/_engines/thread_driver.py\", line 304, in call_here\n    return context.run(fn, ctx), None\n           ^^^^^^^^^^^^^^^^^^^^\n  File \"/srv/flowcore/tests/stores/released.py\", line 66, in load\n    raise OSError(\"the disk is full\")\nOSError: the disk is full\nflowcore: run fb0e05049721b49b3e9e9e8160cf3797 of workflow ''etl'' failed at step ''load'' after 1 attempt; nothing was undone: the next call with its key continues at the failed step.\n"}}');
INSERT INTO "fields" VALUES(4,'values','{"fails":"true"}');
CREATE TABLE runs (
        id INTEGER PRIMARY KEY,     -- rises with each run that begins
        schema INTEGER,
        key TEXT UNIQUE,            -- NULL: another run has it by now, or none
        run_id TEXT,
        owner TEXT,
        workflow TEXT,
        fingerprint TEXT,
        status TEXT,
        held INTEGER DEFAULT 0,
        undoing INTEGER DEFAULT 0,
        decision TEXT,
        reason TEXT,
        by TEXT,
        since INTEGER,              -- this and all other times: microseconds since the epoch
        before_status TEXT,
        before_expires INTEGER,
        before_by TEXT,
        before_since INTEGER,
        takeovers INTEGER DEFAULT 0,
        retries INTEGER DEFAULT 0,
        delay INTEGER DEFAULT 0,
        not_before INTEGER,
        deadline INTEGER,
        generation INTEGER,
        fence INTEGER,
        seq INTEGER DEFAULT 0,
        received INTEGER DEFAULT 0,
        started INTEGER,
        finished INTEGER,
        expires INTEGER,
        lease INTEGER,              -- microseconds from when `expires` was set to then
        due INTEGER,                -- recovery may resume it then, or later while its owner lives; NULL: never
        forget INTEGER              -- the end of its retention; NULL: there is more to come, or it is held
    );
INSERT INTO "runs" VALUES(1,2,'good','37da501cddf3efa02b0bdf86e18e5cd6','37da501cddf3efa02b0bdf86e18e5cd6','order','56d424407c800b3823fada87349d42ab7c47bf6f36ce971f0e46a70bb93a6238','success',0,0,NULL,'','{"host":"vm","pid":6926}',1795954651718555,NULL,NULL,NULL,NULL,0,0,0,NULL,NULL,0,1795954651718555,5,0,1795954651718555,1795954651721739,NULL,30000000,NULL,2111314651721739);
INSERT INTO "runs" VALUES(2,2,'stolen','d45eb2000711958b6c8b82fa1f0afc49','d45eb2000711958b6c8b82fa1f0afc49','order','a34fc367ca1334e99ee45a434ed672ed89aaa6c6ed1d15372f9eb28e4a5851c6','compensated',0,1,NULL,'','{"host":"vm","pid":6926}',1795954651722983,NULL,NULL,NULL,NULL,0,0,0,NULL,NULL,0,1795954651722983,7,0,1795954651722983,1795954651727163,NULL,30000000,NULL,2111314651727163);
INSERT INTO "runs" VALUES(3,2,'stuck','797d26f9cd06568e20271f4b88faf843','797d26f9cd06568e20271f4b88faf843','order','6772c83098e7796eb341deca2ef4bc5f47cc4908e56e4fe858a5787338ca06c0','compensation_failed',1,1,NULL,'the undo of step ''reserve'' (ConnectionError: warehouse is down) failed','{"host":"vm","pid":6926}',1795954651728959,NULL,NULL,NULL,NULL,0,0,0,NULL,NULL,0,1795954651728959,7,0,1795954651728959,1795954651733496,NULL,30000000,NULL,NULL);
INSERT INTO "runs" VALUES(4,2,'nightly','fb0e05049721b49b3e9e9e8160cf3797','fb0e05049721b49b3e9e9e8160cf3797','etl','1d6f0f9ad70438f1d33f9cceb88d63a94e7b4121446bff4b82d1b632a9086c91','incomplete',0,0,NULL,'step ''load'' failed (OSError: the disk is full)','{"host":"vm","pid":6926}',1795954651735091,NULL,NULL,NULL,NULL,0,1,0,9007199254740991,NULL,0,1795954651735091,4,0,1795954651735091,1795954651744214,NULL,30000000,NULL,NULL);
CREATE INDEX runs_by_run_id ON runs (run_id);
CREATE INDEX runs_by_status ON runs (status, workflow);
CREATE INDEX runs_by_due ON runs (workflow, due) WHERE due IS NOT NULL;
CREATE INDEX runs_by_end ON runs (forget) WHERE forget IS NOT NULL;
CREATE INDEX runs_held ON runs (held) WHERE held = 1;
COMMIT;
PRAGMA application_id = 1718382455;
PRAGMA user_version = 2;
