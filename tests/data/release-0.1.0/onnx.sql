BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v3.2.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'octavo');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
INSERT INTO "study_directions" VALUES(2,'MINIMIZE',1,1);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_user_attributes" VALUES(1,1,'octavo:schema','1');
INSERT INTO "study_user_attributes" VALUES(2,1,'octavo:fingerprint','{"model": "e310eb536a4831b6", "data": "37f35fb6bb2fa48b", "space": "[\"916c5fb41a301bb4\"]", "goal": "[{\"tolerance\":0.05},[\"size\"]]", "objectives": "{\"size\":{}}", "holdout": "{\"holdout_fn\":false}", "samples": "{}", "racing": "{}", "versions": "{\"octavo\":\"0.1.0\",\"onnx\":{\"onnx\":\"1.23.2\",\"onnxruntime\":\"1.32.0\"}}", "machine": "{\"architecture\":\"x86_64\",\"devices\":{\"onnx\":\"cpu\"},\"instructions\":[\"avx2\"]}"}');
INSERT INTO "study_user_attributes" VALUES(3,1,'octavo:settings','{"rules": [], "transforms": null, "simulated": false, "backends": null, "strategy": "basic"}');
INSERT INTO "study_user_attributes" VALUES(4,1,'octavo:samples','null');
INSERT INTO "study_user_attributes" VALUES(5,1,'octavo:guard:began','true');
INSERT INTO "study_user_attributes" VALUES(6,1,'octavo:guard:done','true');
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT, 
	intermediate_value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_user_attributes" VALUES(1,1,'octavo:recipe','"0ec6f040ab9f81a6"');
INSERT INTO "trial_user_attributes" VALUES(2,1,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "onnx.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(3,1,'octavo:trial','"{\"number\": 0, \"recipe\": {\"backend\": \"onnx\", \"transforms\": [], \"schemes\": {}, \"ops\": {}}, \"state\": \"complete\", \"metrics\": {\"score\": 1.0}, \"passed\": true, \"margin\": 1.0, \"objectives\": {\"size\": [4730.0, 4730.0, 4730.0, \"bytes\", 1.0, true]}, \"ledger\": {}, \"over\": {}, \"error\": \"\", \"seconds\": {\"evaluate\": 0.005584300999544212, \"measure\": 0.0016180500006157672}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 2, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(4,2,'octavo:recipe','"4e65a474d385f6b1"');
INSERT INTO "trial_user_attributes" VALUES(5,2,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "onnx.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(6,2,'octavo:trial','"{\"number\": 1, \"recipe\": {\"backend\": \"onnx\", \"transforms\": [], \"schemes\": {\"static w:int8/channel x:uint8-asym/tensor #cd107f\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\"}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}}, \"ops\": {\"fc0\": \"static w:int8/channel x:uint8-asym/tensor #cd107f\", \"fc1\": \"static w:int8/channel x:uint8-asym/tensor #cd107f\", \"fc2\": \"static w:int8/channel x:uint8-asym/tensor #cd107f\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.9375}, \"passed\": false, \"margin\": -0.24999999999999994, \"objectives\": {\"size\": [5621.0, 5621.0, 5621.0, \"bytes\", 1.1883720930232557, true]}, \"ledger\": {\"fc0\": [\"kernel\", \"QGemm; its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}], \"fc1\": [\"kernel\", \"QGemm; its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}], \"fc2\": [\"kernel\", \"QGemm; its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"granularity\": \"channel\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.012737910001305863, \"evaluate\": 0.0006555729996762238, \"measure\": 0.002573953999672085}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(7,3,'octavo:recipe','"2a68c710c26aadd5"');
INSERT INTO "trial_user_attributes" VALUES(8,3,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "onnx.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(9,3,'octavo:trial','"{\"number\": 2, \"recipe\": {\"backend\": \"onnx\", \"transforms\": [], \"schemes\": {\"static w:uint8-asym/channel x:uint8-asym/tensor #579ee0\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"uint8\", \"symmetric\": false, \"granularity\": \"channel\"}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}}, \"ops\": {\"fc0\": \"static w:uint8-asym/channel x:uint8-asym/tensor #579ee0\", \"fc1\": \"static w:uint8-asym/channel x:uint8-asym/tensor #579ee0\", \"fc2\": \"static w:uint8-asym/channel x:uint8-asym/tensor #579ee0\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.984375}, \"passed\": true, \"margin\": 0.6875, \"objectives\": {\"size\": [5020.0, 5020.0, 5020.0, \"bytes\", 1.0613107822410148, true]}, \"ledger\": {\"fc0\": [\"kernel\", \"QGemm\", null], \"fc1\": [\"kernel\", \"QGemm\", null], \"fc2\": [\"kernel\", \"QGemm\", null]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.013734039001064957, \"evaluate\": 0.0006374999993568053, \"measure\": 0.0027163890008523595}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(10,4,'octavo:recipe','"9391e10bad4b9192"');
INSERT INTO "trial_user_attributes" VALUES(11,4,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "onnx.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(12,4,'octavo:trial','"{\"number\": 3, \"recipe\": {\"backend\": \"onnx\", \"transforms\": [], \"schemes\": {\"static w:int8/tensor x:uint8-asym/tensor #5671ea\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\"}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}}, \"ops\": {\"fc0\": \"static w:int8/tensor x:uint8-asym/tensor #5671ea\", \"fc1\": \"static w:int8/tensor x:uint8-asym/tensor #5671ea\", \"fc2\": \"static w:int8/tensor x:uint8-asym/tensor #5671ea\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.984375}, \"passed\": true, \"margin\": 0.6875, \"objectives\": {\"size\": [4935.0, 4935.0, 4935.0, \"bytes\", 1.0433403805496828, true]}, \"ledger\": {\"fc0\": [\"kernel\", \"QGemm; its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}], \"fc1\": [\"kernel\", \"QGemm; its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}], \"fc2\": [\"kernel\", \"QGemm; its weight keeps to 7 of its 8 bits, which a CPU without VNNI sums without saturating\", {\"mode\": \"static\", \"weight\": {\"dtype\": \"int8\", \"reduce_range\": true}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.012121720999857644, \"evaluate\": 0.0007506499987357529, \"measure\": 0.00236759800100117}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
INSERT INTO "trial_user_attributes" VALUES(13,5,'octavo:recipe','"cf01b847167f864c"');
INSERT INTO "trial_user_attributes" VALUES(14,5,'octavo:process','{"host": "vm", "boot": "b91d1b17-4578-4826-ac34-aebf8a4e31c3", "pid": 30685, "faults": "onnx.db.faults", "starved": 0}');
INSERT INTO "trial_user_attributes" VALUES(15,5,'octavo:trial','"{\"number\": 4, \"recipe\": {\"backend\": \"onnx\", \"transforms\": [], \"schemes\": {\"static w:uint8-asym/tensor x:uint8-asym/tensor #11f593\": {\"mode\": \"static\", \"weight\": {\"dtype\": \"uint8\", \"symmetric\": false}, \"input\": {\"dtype\": \"uint8\", \"symmetric\": false}}}, \"ops\": {\"fc0\": \"static w:uint8-asym/tensor x:uint8-asym/tensor #11f593\", \"fc1\": \"static w:uint8-asym/tensor x:uint8-asym/tensor #11f593\", \"fc2\": \"static w:uint8-asym/tensor x:uint8-asym/tensor #11f593\"}}, \"state\": \"complete\", \"metrics\": {\"score\": 0.953125}, \"passed\": true, \"margin\": 0.06250000000000006, \"objectives\": {\"size\": [4406.0, 4406.0, 4406.0, \"bytes\", 0.9315010570824525, true]}, \"ledger\": {\"fc0\": [\"kernel\", \"QGemm\", null], \"fc1\": [\"kernel\", \"QGemm\", null], \"fc2\": [\"kernel\", \"QGemm\", null]}, \"over\": {}, \"error\": \"\", \"seconds\": {\"apply\": 0.011729678999472526, \"evaluate\": 0.0007128500001272187, \"measure\": 0.002327063000848284}, \"evaluated\": 1.0, \"reused\": null, \"refused\": \"\", \"runs\": 1, \"noise\": 0.0}"');
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT, 
	value_type VARCHAR(7) NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,1.0,'FINITE');
INSERT INTO "trial_values" VALUES(2,1,1,4730.0,'FINITE');
INSERT INTO "trial_values" VALUES(3,2,0,0.9375,'FINITE');
INSERT INTO "trial_values" VALUES(4,2,1,5621.0,'FINITE');
INSERT INTO "trial_values" VALUES(5,3,0,0.984375,'FINITE');
INSERT INTO "trial_values" VALUES(6,3,1,5020.0,'FINITE');
INSERT INTO "trial_values" VALUES(7,4,0,0.984375,'FINITE');
INSERT INTO "trial_values" VALUES(8,4,1,4935.0,'FINITE');
INSERT INTO "trial_values" VALUES(9,5,0,0.953125,'FINITE');
INSERT INTO "trial_values" VALUES(10,5,1,4406.0,'FINITE');
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-27 14:05:52.894424','2026-11-27 14:05:52.926019');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-27 14:05:52.977689','2026-11-27 14:05:53.015183');
INSERT INTO "trials" VALUES(3,2,1,'COMPLETE','2026-11-27 14:05:53.020742','2026-11-27 14:05:53.063430');
INSERT INTO "trials" VALUES(4,3,1,'COMPLETE','2026-11-27 14:05:53.068042','2026-11-27 14:05:53.105142');
INSERT INTO "trials" VALUES(5,4,1,'COMPLETE','2026-11-27 14:05:53.109280','2026-11-27 14:05:53.145303');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'5.0.0');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
CREATE INDEX ix_trials_study_id ON trials (study_id);
COMMIT;
